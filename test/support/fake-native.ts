/** Devices without a model behind them: loads that the test ends or fails when it wants, models that answer as fakes do. */
import { pino } from 'pino'
import { EngineDevice } from '../../engine/device.js'
import { Engine } from '../../engine/engine.js'
import { KvArena } from '../../engine/kv/arena.js'
import { KV_UNIT_BYTES, type LoadRequest, type NativeDevice, type NativeModel } from '../../engine/native.js'
import type { KnownVariant } from '../../engine/residency/catalog.js'
import { DeviceSlot } from '../../engine/residency/device-slot.js'
import { MemoryLedger } from '../../engine/residency/ledger.js'
import { Residency } from '../../engine/residency/residency.js'
import { addVariant } from '../../engine/residency/setup.js'
import { FAKE_VOCAB } from './fake-engine.js'
import { FakeExecutor, type FakeMemory } from './fake-executor.js'
import { stories260kRequest } from './stories260k.js'

/** Bytes of everything that fakes load. */
export const UNIT = 2 ** 20
const SLAB = 8 * KV_UNIT_BYTES
const BLOCK_SIZE = 4

/** A device whose loads take until the test lets them go, or no time at all. */
export class FakeNativeDevice implements NativeDevice {
  readonly elasticKv = true
  readonly packedLayout = 'fake'
  readonly discarded: number[] = []
  /** Names of the variants loaded and unloaded, in order: "+a:int4", "-a:int4". */
  readonly log: string[] = []
  /** Thrown by the next loads, one each. */
  readonly failures: Error[] = []
  /** Thrown by the next unloads, one each. */
  readonly unloadFailures: Error[] = []
  /** Set: what the device answers to everything. */
  dead: Error | undefined
  /** Set: the next loads wait for `open`. */
  gate: { open: () => void; opened: Promise<void> } | undefined
  loading = 0
  /** Page-locked memory that the system gave. */
  hostCache = 0
  private readonly memory: FakeMemory = new Map()

  constructor(private readonly sizes: ReadonlyMap<LoadRequest, Sizes>) {}

  close(): Promise<void> {
    return Promise.resolve()
  }

  discardKv({ offset }: { offset: number }): Promise<void> {
    this.discarded.push(offset)
    return Promise.resolve()
  }

  readBandwidth(): Promise<number> {
    return Promise.resolve(1e9)
  }

  usedBytes(): Promise<undefined> {
    return this.dead ? Promise.reject(this.dead) : Promise.resolve(undefined)
  }

  hostCacheBytes(): Promise<number> {
    return Promise.resolve(this.hostCache)
  }

  copyKv(): Promise<{ deviceMicros: number }> {
    return Promise.resolve({ deviceMicros: 1 })
  }

  /** Makes loads wait until the returned function is called. */
  hold(): () => void {
    const gate = { open: (): void => {}, opened: Promise.resolve() }
    gate.opened = new Promise((resolve) => {
      gate.open = () => {
        this.gate = undefined
        resolve()
      }
    })
    this.gate = gate
    return gate.open
  }

  async loadModel(request: LoadRequest): Promise<NativeModel> {
    if (++this.loading > 1) throw new Error('two loads at once')
    await this.gate?.opened
    this.loading--
    const failure = this.failures.shift()
    if (failure) throw failure
    const sizes = this.sizes.get(request)
    if (!sizes) throw new Error('not a request of this test')
    this.log.push(`+${sizes.name}`)
    return new FakeNativeModel(this.memory, sizes, () => this.unloadModel(sizes))
  }

  private unloadModel({ name }: Sizes): Promise<void> {
    const failure = this.unloadFailures.shift()
    if (failure) return Promise.reject(failure)
    this.log.push(`-${name}`)
    return Promise.resolve()
  }
}

interface Sizes {
  name: string
  weightBytes: number
  workspaceBytes: number
}

class FakeNativeModel extends FakeExecutor implements NativeModel {
  readonly weightBytes: number
  readonly workspaceBytes: number
  readonly blockBytes = KV_UNIT_BYTES
  readonly roundingError = 0
  readonly origin = 'files'
  readonly packedFault = ''
  readonly packedBytes = 0

  constructor(
    memory: FakeMemory,
    { weightBytes, workspaceBytes }: Sizes,
    readonly unload: () => Promise<void>,
  ) {
    super(memory, BLOCK_SIZE, FAKE_VOCAB)
    this.weightBytes = weightBytes
    this.workspaceBytes = workspaceBytes
  }

  savePacked(): Promise<void> {
    return Promise.resolve()
  }
}

/** A fake variant: weights in units, and what differs from the defaults. */
export interface FakeVariant {
  weights: number
  devices?: string[]
  pinned?: boolean
  keepAliveMs?: number
}

/** An engine over fake devices of so many units, with variants that are loaded on demand. */
export interface FakeResidency {
  engine: Engine
  residency: Residency
  natives: Map<string, FakeNativeDevice>
  /** Errors with which devices were lost. */
  lost: unknown[]
  slot(id?: string): DeviceSlot
  /** Bytes by kind and owner. */
  ledger(id?: string): string[]
}

export interface FakeResidencyOptions {
  /** Units of each device's budget; KV of one sequence takes one slab, the rest little. */
  devices?: Record<string, number>
  variants: Record<string, FakeVariant>
  clock?: () => number
  turnMs?: number
  maxWaiting?: number
}

export function fakeResidency(options: FakeResidencyOptions): FakeResidency {
  const { devices = { cpu0: 100 }, variants, clock = () => performance.now(), turnMs } = options
  const log = pino({ level: 'silent' })
  const engine = new Engine({ version: 'test', maxWaiting: options.maxWaiting ?? 1000, clock, log })
  const residency = new Residency(engine, turnMs)
  const sizes = new Map<LoadRequest, Sizes>()
  const natives = new Map<string, FakeNativeDevice>()
  const lost: unknown[] = []
  const events = { deviceFailed: (error: unknown) => void lost.push(error), sequenceFinished: engine.sequenceFinished }
  for (const [id, units] of Object.entries(devices)) {
    const native = new FakeNativeDevice(sizes)
    const arena = new KvArena(64 * SLAB, SLAB, (offset) => void native.discardKv({ offset }))
    const ledger = new MemoryLedger(units * UNIT)
    const kvEntry = ledger.add('kv', '', arena.bytes)
    const work = { clock, log, events, depth: 2, stepTimeoutMs: 60_000, interactiveGoalMs: 0 }
    const device = new EngineDevice({ id, kind: 'cpu', name: 'fake' }, ledger, arena, work)
    const budget = { id, budgetBytes: units * UNIT, overheadBytes: 0 }
    engine.devices.push(device)
    natives.set(id, native)
    residency.slots.set(
      id,
      new DeviceSlot({
        ...{ native, device, budget, kvEntry, contextBytes: 0, fixedKvBytes: undefined },
        lost: events.deviceFailed,
      }),
    )
  }
  for (const [name, variant] of Object.entries(variants)) {
    const known = knownVariant(name, variant, Object.keys(devices))
    sizes.set(known.request, known.demand)
    addVariant(residency, engine, known)
  }
  const slot = (id = 'cpu0'): DeviceSlot => {
    const found = residency.slots.get(id)
    if (!found) throw new Error(`no device ${id}`)
    return found
  }
  const ledger = (id = 'cpu0'): string[] =>
    slot(id).open.device.ledger.entries.map(({ kind, owner, bytes }) => `${kind} ${owner} ${bytes}`)
  return { engine, residency, natives, lost, slot, ledger }
}

function knownVariant(name: string, variant: FakeVariant, devices: string[]): KnownVariant {
  const [model = ''] = name.split(':')
  const maxModelLen = 32
  return {
    name,
    model,
    precision: 'int4',
    vocabSize: FAKE_VOCAB,
    maxModelLen,
    blockBytes: KV_UNIT_BYTES,
    pinned: variant.pinned ?? false,
    keepAliveMs: variant.keepAliveMs ?? 600_000,
    limits: { maxNumSeqs: 8, maxBatchTokens: 32, blockSize: BLOCK_SIZE, maxModelLen, prefixCaching: true },
    demand: {
      name,
      devices: variant.devices ?? devices,
      ordered: variant.devices !== undefined,
      weightBytes: variant.weights * UNIT,
      workspaceBytes: UNIT / 2,
      blockBytes: KV_UNIT_BYTES,
      sequenceKvBytes: (maxModelLen / BLOCK_SIZE) * KV_UNIT_BYTES,
    },
    request: stories260kRequest('int4'),
    promptRopes: () => [],
  }
}
