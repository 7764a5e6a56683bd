/** What a GPU's context takes of its budget, as the driver says; the arithmetic, and a GPU's opening with a fake driver. */
import { pino } from 'pino'
import { describe, expect, it } from 'vitest'
import { type DeviceConfig, parseConfig } from '../../engine/config/index.js'
import type { DeviceOptions, NativeAddon, NativeDeviceInfo } from '../../engine/native.js'
import { budgetOf, openDevice } from '../../engine/residency/open.js'
import type { VariantDemand } from '../../engine/residency/state.js'
import { FakeNativeDevice } from '../support/fake-native.js'

const MIB = 2 ** 20
const CONTEXT = 500 * MIB
const OVERHEAD = 64 * MIB

const gpu = (memoryBytes: number): NativeDeviceInfo => {
  return { kind: 'cuda', index: 1, name: 'a GPU', memoryBytes, features: [] }
}

function configured(fields: string): DeviceConfig {
  const text = `devices: [{ id: gpu0, kind: cuda, index: 1${fields} }]\nmodels: [{ id: m, variants: [{ path: m }] }]`
  const [device] = parseConfig(text, 'm.yaml').devices
  if (!device) throw new Error('no device')
  return device
}

describe('the budget of a GPU', () => {
  it.each([
    ['a share of all its memory, the context included', ', memory_utilization: 0.5', 8e9, 4e9],
    ['what is put there beside the context', ', memory_gb: 2', 8e9, 2e9 + CONTEXT],
    ['the smaller of both', ', memory_utilization: 0.5, memory_gb: 3.9', 8e9, 4e9],
  ])('is %s', (_, fields, memoryBytes, budgetBytes) => {
    const found = { config: configured(fields), info: gpu(memoryBytes) }
    expect(budgetOf(found, CONTEXT)).toEqual({ id: 'gpu0', budgetBytes, overheadBytes: OVERHEAD + CONTEXT })
  })
})

describe('opening a GPU', () => {
  const demand: VariantDemand = {
    ...{ name: 'm:int4', devices: ['gpu0'], ordered: false, weightBytes: 1e9, workspaceBytes: 1e8 },
    ...{ blockBytes: MIB, sequenceKvBytes: 100 * MIB },
  }

  function open(usedBytes: number, fields = '', hostCache = 0) {
    const lines: string[] = []
    const log = pino({}, { write: (line: string) => void lines.push(String(JSON.parse(line).msg)) })
    const opened: DeviceOptions[] = []
    const asked: number[] = []
    const addon: Pick<NativeAddon, 'openDevice' | 'usedBytes'> = {
      usedBytes: (index) => (asked.push(index), usedBytes),
      openDevice: (options) => {
        opened.push(options)
        return Object.assign(new FakeNativeDevice(new Map()), { elasticKv: false, hostCache })
      },
    }
    const options = {
      ...{ clock: () => 0, log, depth: 1, stepTimeoutMs: 1000, interactiveGoalMs: 0 },
      events: { deviceFailed: () => {}, sequenceFinished: () => {} },
    }
    const device = openDevice({ config: configured(fields), info: gpu(8e9) }, [demand], addon, options)
    return { device, asked, lines, arenaBytes: opened[0]?.kvArenaBytes ?? 0 }
  }

  it('asks its driver before the arena is planned, and keeps what is in use in the ledger', () => {
    const { device, asked, arenaBytes } = open(CONTEXT)
    expect(asked).toEqual([1])
    const { ledger } = device.device
    expect(ledger.entries.map(({ kind, bytes }) => [kind, bytes])).toEqual([
      ['overhead', OVERHEAD],
      ['context', CONTEXT],
      ['kv', arenaBytes],
    ])
    expect(ledger.freeBytes).toBe(ledger.budgetBytes - OVERHEAD - CONTEXT - arenaBytes)
    // The weights still fit beside the arena, however tight it is.
    const tight = open(CONTEXT, ', memory_utilization: 0.24')
    expect(tight.device.device.ledger.freeBytes).toBeGreaterThanOrEqual(demand.weightBytes + demand.workspaceBytes)
  })

  it.each([
    // As much as whole pages hold.
    [999_997_440, []],
    [0, ['no host cache: the system refused page-locked memory; loads read files']],
  ])('says in ledger and log what page-locked memory it got: %i', async (bytes, said) => {
    const { device, lines } = open(CONTEXT, ', host_cache_gb: 1', bytes)
    await new Promise((resolve) => setImmediate(resolve))
    const entry = device.device.ledger.entries.find(({ kind }) => kind === 'host_cache')
    expect([entry?.bytes, lines]).toEqual([bytes, said])
  })

  it('does not hold it against the device for good that an engine before it is not gone yet', () => {
    expect(open(7e9).device.contextBytes).toBe(2 ** 30)
  })
})
