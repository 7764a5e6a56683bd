import { describe, expect, it } from 'vitest'
import { type MergedStatus, mergeStatus } from '../../gateway/engine-client/merge-status.js'
import { DeviceStatus, EngineStatus, VariantState, VariantStatus } from '../../proto/gen/edgeshift/v1/engine.js'

const { READY, LOADING, UNLOADED, FAILED } = VariantState

interface Told {
  state?: VariantState
  loadable?: boolean
  queueable?: boolean
  room?: string[]
  running?: number
  waiting?: number
}

/** An engine with one variant "m:int4" and so many bytes free on its device. */
function engine(id: string, told: Told, free = 100): EngineStatus {
  const ledger = [
    { kind: 'weights', owner: '', bytes: 1000 - free, host: false },
    { kind: 'host_cache', owner: '', bytes: 5000, host: true },
  ]
  return EngineStatus.create({
    engineVersion: '1',
    variants: [VariantStatus.create({ name: 'm:int4', model: 'm', device: id, ...told })],
    devices: [DeviceStatus.create({ id, budgetBytes: 1000, ledger })],
    running: 1,
    maxWaiting: 10,
  })
}

/** The engine that serves the variant soonest, by its place. */
const firstOf = (merged: MergedStatus | undefined): number | undefined => merged?.offers.get('m:int4')?.[0]?.engine

describe('mergeStatus', () => {
  it.each<[string, Told, Told]>([
    ['resident before on its way', { state: READY }, { state: LOADING }],
    ['on its way before loadable', { state: LOADING }, { state: UNLOADED, loadable: true }],
    ['room before room to make', { loadable: true }, { loadable: true, room: ['n:int4'] }],
    ['loadable before busy', { loadable: true, room: ['n:int4'] }, { queueable: true }],
    ['busy before not at all', { queueable: true }, { state: FAILED }],
    [
      'the shorter queue of two that are resident',
      { state: READY, running: 1, waiting: 1 },
      { state: READY, running: 3 },
    ],
  ])('takes a variant from the engine that serves it soonest: %s', (_, better, worse) => {
    for (const [a, b, place] of [
      [better, worse, 0],
      [worse, better, 1],
    ] as const) {
      const merged = mergeStatus([engine('one', a), engine('two', b)], false)
      expect(firstOf(merged)).toBe(place)
      expect(merged?.status.variants.map(({ device }) => device)).toEqual([place === 0 ? 'one' : 'two'])
    }
  })

  it('else takes the one with more free memory, else the first', () => {
    const [less, more] = [engine('one', { loadable: true }, 5), engine('two', { loadable: true }, 6)]
    expect(firstOf(mergeStatus([less, more], false))).toBe(1)
    expect(firstOf(mergeStatus([engine('one', {}), engine('two', {})], false))).toBe(0)
  })

  it('adds up what is of all, keeps every device, and passes over engines that say nothing', () => {
    const [one, two] = [engine('one', {}), engine('two', {})]
    one.packed = { bytes: 1, budgetBytes: 10, files: 1, events: new Map([['hit', 2]]) }
    two.packed = {
      bytes: 2,
      budgetBytes: 10,
      files: 3,
      events: new Map([
        ['hit', 1],
        ['miss', 4],
      ]),
    }
    two.configError = 'line 3: no'
    one.configWaiting = two.configWaiting = ['line 1: later']
    const merged = mergeStatus([one, undefined, two], false)
    expect(merged?.status).toMatchObject({ running: 2, maxWaiting: 20, configError: 'line 3: no' })
    expect(merged?.status.configWaiting).toEqual(['line 1: later'])
    expect(merged?.status.devices.map(({ id }) => id)).toEqual(['one', 'two'])
    const events = new Map([
      ['hit', 3],
      ['miss', 4],
    ])
    expect(merged?.status.packed).toEqual({ bytes: 3, budgetBytes: 20, files: 4, events })
  })

  it('shows what nobody can take at once as on its way while an engine is awaited', () => {
    for (const [told, state] of [
      [{ queueable: true }, LOADING],
      [{ state: FAILED }, LOADING],
      [{ state: UNLOADED, loadable: true, room: ['n:int4'] }, UNLOADED],
      [{ state: READY }, READY],
    ] satisfies [Told, VariantState][]) {
      const merged = mergeStatus([engine('one', told), undefined], true)
      expect(merged?.status.variants.map((variant) => variant.state)).toEqual([state])
    }
  })

  it('leaves the status of a single engine as it is', () => {
    const only = engine('one', { state: READY })
    expect(firstOf(mergeStatus([undefined, only], false))).toBe(1)
    expect(mergeStatus([undefined, only], false)?.status).toBe(only)
    expect(mergeStatus([undefined], false)).toBeUndefined()
  })
})
