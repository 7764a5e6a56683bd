/** Who goes so that a variant can come: by table, and what no plan may do. */
import * as fc from 'fast-check'
import { describe, expect, it } from 'vitest'
import {
  doesNotFit,
  kvTarget,
  type LoadPlan,
  minKvBytes,
  planArena,
  planLoad,
  planShrink,
  type Room,
} from '../../engine/residency/plan.js'
import { type DeviceState, emptyDevice, type ResidentState, type VariantDemand } from '../../engine/residency/state.js'

const MIB = 2 ** 20
const SLAB = 10 * MIB

function demand(name: string, weights: number, overrides: Partial<VariantDemand> = {}): VariantDemand {
  const sizes = { weightBytes: weights * MIB, workspaceBytes: 10 * MIB, blockBytes: MIB, sequenceKvBytes: 100 * MIB }
  return { name, devices: ['a'], ordered: false, ...sizes, ...overrides }
}

function resident(name: string, mib: number, overrides: Partial<ResidentState> = {}): ResidentState {
  const still = { usedKvBytes: 0, pinned: false, busy: false, loadedAt: 0 }
  return { name, bytes: mib * MIB, minKvBytes: 100 * MIB, ...still, ...overrides }
}

function device(
  id: string,
  mib: number,
  residents: ResidentState[],
  overrides: Partial<DeviceState> = {},
): DeviceState {
  return { ...emptyDevice({ id, budgetBytes: mib * MIB, overheadBytes: 20 * MIB }, SLAB), residents, ...overrides }
}

/** "load on a - x - y", "wait for a - x (rest y)", "refuse: why" */
function words(plan: LoadPlan): string {
  if (plan.kind === 'load') return [`load on ${plan.device}`, ...plan.evict].join(' - ')
  if (plan.kind === 'wait') {
    const resting = plan.rest.length > 0 ? ` (rest ${plan.rest.join(', ')})` : ''
    return [`wait for ${plan.device}`, ...plan.drain].join(' - ') + resting
  }
  return plan.kind === 'refuse' ? `refuse: ${plan.reason}` : 'resident'
}

const busy = { busy: true }
const pinned = { pinned: true }
const using = (mib: number) => ({ ...busy, usedKvBytes: mib * MIB })

describe('planLoad', () => {
  const cases: [string, DeviceState[], VariantDemand, string][] = [
    ['what is loaded', [device('a', 1000, [resident('m:int4', 1)])], demand('m:int4', 1), 'resident'],
    ['free memory', [device('a', 1000, [resident('x', 500)])], demand('m', 300), 'load on a'],
    [
      'the least recently used goes first',
      [device('a', 1000, [resident('x', 400), resident('y', 400)])],
      demand('m', 300),
      'load on a - x',
    ],
    [
      'several go, but nobody who could stay: y and z make room for m without x',
      [device('a', 1000, [resident('x', 100), resident('y', 300), resident('z', 400)])],
      demand('m', 650),
      'load on a - y - z',
    ],
    [
      'busy and pinned ones stay',
      [device('a', 1000, [resident('x', 300, busy), resident('y', 250, pinned), resident('z', 200)])],
      demand('m', 200),
      'load on a - z',
    ],
    [
      'waits for busy ones, the longest loaded first',
      [device('a', 1000, [resident('x', 400, { ...busy, loadedAt: 9 }), resident('y', 400, { ...busy, loadedAt: 5 })])],
      demand('m', 300),
      'wait for a - y',
    ],
    [
      'waits for KV memory in use, and asks who uses it to rest',
      [device('a', 1000, [resident('x', 300, using(400))])],
      demand('m', 300),
      'wait for a (rest x)',
    ],
    [
      'asks only those to rest whose KV memory is needed, the longest loaded first, pinned ones last',
      [
        device('a', 1000, [
          resident('x', 100, { ...using(200), ...pinned }),
          resident('y', 100, { ...using(100), loadedAt: 5 }),
          resident('z', 100, { ...using(200), loadedAt: 9 }),
        ]),
      ],
      demand('m', 300),
      'wait for a (rest z)',
    ],
    [
      'asks a pinned one to rest where nobody else can help',
      [device('a', 1000, [resident('x', 300, { ...using(400), ...pinned })])],
      demand('m', 300),
      'wait for a (rest x)',
    ],
    [
      'a busy one leaves, and with it its KV memory',
      [device('a', 1000, [resident('x', 400, using(300)), resident('y', 100, using(100))])],
      demand('m', 500),
      'wait for a - x',
    ],
    [
      'a busy one leaves and another rests',
      [device('a', 1000, [resident('x', 400, using(50)), resident('y', 100, { ...using(400), loadedAt: 1 })])],
      demand('m', 500),
      'wait for a - x (rest y)',
    ],
    [
      'waits while the device is being changed, and asks nobody to go',
      [device('a', 1000, [resident('x', 800, busy)], { changing: true })],
      demand('m', 300),
      'wait for a',
    ],
    [
      'does not fit beside what is pinned',
      [device('a', 1000, [resident('x', 600, pinned)])],
      demand('m', 300),
      'refuse: needs 300 MiB weights + 10 MiB workspace + 100 MiB KV for one sequence of full length; a has 380 MiB of 1000 MiB free beside 600 MiB pinned',
    ],
    [
      'a fixed arena is not for weights',
      [device('a', 1000, [], { fixedKvBytes: 600 * MIB })],
      demand('m', 400),
      'refuse: needs 400 MiB weights + 10 MiB workspace + 100 MiB KV for one sequence of full length; a has 380 MiB and 600 MiB KV of 1000 MiB free',
    ],
    ['no device', [device('b', 1000, [])], demand('m', 1), 'refuse: none of its devices (a) could be opened'],
    [
      'a block larger than a slab',
      [device('a', 1000, [])],
      demand('m', 1, { blockBytes: SLAB + 256 }),
      'refuse: its KV blocks (10486016 bytes) are larger than the slabs of a; start anew to serve it',
    ],
  ]
  it.each(cases)('%s', (_, devices, wanted, expected) => {
    expect(words(planLoad(devices, wanted))).toBe(expected)
  })

  it('places by fit, then preference, then where it was last, then the most free memory', () => {
    const both = { devices: ['a', 'b'] }
    const full = device('a', 1000, [resident('x', 800)])
    const free = [device('a', 1000, []), device('b', 2000, [])]
    expect(words(planLoad([full, device('b', 1000, [])], demand('m', 300, { ...both, ordered: true })))).toBe(
      'load on b',
    )
    expect(words(planLoad(free, demand('m', 300, { ...both, ordered: true })))).toBe('load on a')
    expect(words(planLoad(free, demand('m', 300, both), { lastDevice: 'a' }))).toBe('load on a')
    expect(words(planLoad(free, demand('m', 300, both)))).toBe('load on b')
  })

  it('names the idle ones that have to leave with the busy ones', () => {
    const on = device('a', 1000, [resident('x', 400), resident('y', 400, busy)])
    expect(planLoad([on], demand('m', 700))).toMatchObject({ kind: 'wait', evict: ['x'], drain: ['y'] })
  })

  it('evicts nobody for what nobody asked for', () => {
    const full = device('a', 1000, [resident('x', 800)])
    expect(planLoad([full], demand('m', 300), { evict: false }).kind).toBe('refuse')
    expect(words(planLoad([device('a', 1000, [])], demand('m', 300), { evict: false }))).toBe('load on a')
  })
})

describe('a lowered budget', () => {
  it('lets idle ones go, asks busy ones to, and never touches pinned ones', () => {
    const three = [resident('x', 300), resident('y', 300), resident('z', 200, pinned)]
    expect(planShrink(device('a', 700, three))).toEqual({ evict: ['x'], drain: [], rest: [] })
    expect(planShrink(device('a', 400, three))).toEqual({ evict: ['x', 'y'], drain: [], rest: [] })
    expect(planShrink(device('a', 100, three))).toEqual({ evict: ['x', 'y'], drain: [], rest: [] })
    const working = [resident('x', 300, busy), resident('y', 300)]
    expect(planShrink(device('a', 200, working))).toEqual({ evict: ['y'], drain: ['x'], rest: [] })
  })

  it('lets nobody go where only KV memory is above it, but asks who uses that to rest', () => {
    const working = [resident('x', 300, using(200)), resident('y', 300, { ...using(100), loadedAt: 1 })]
    expect(planShrink(device('a', 1000, working))).toEqual({ evict: [], drain: [], rest: [] })
    expect(planShrink(device('a', 800, working))).toEqual({ evict: [], drain: [], rest: ['x'] })
    const three = [resident('x', 300, { ...using(200), ...pinned }), resident('y', 300, using(100))]
    expect(planShrink(device('a', 500, three))).toEqual({ evict: [], drain: ['y'], rest: ['x'] })
    expect(planShrink(device('a', 500, three, { fixedKvBytes: 300 * MIB })).rest).toEqual([])
  })

  it('never lets a pinned one that is too large rest for ever', () => {
    const [large] = [resident('x', 600, { ...using(100), ...pinned })]
    expect(planShrink(device('a', 500, [large]))).toEqual({ evict: [], drain: [], rest: [] })
  })
})

describe('planArena', () => {
  it('leaves the weights that fit together their memory, takes at most half, and serves a sequence of each', () => {
    const budget = { id: 'a', budgetBytes: 1000 * MIB, overheadBytes: 20 * MIB }
    const rungs = [demand('fp16', 500), demand('int8', 400), demand('int4', 200)]
    expect(planArena(budget, rungs, SLAB)).toBe(260 * MIB)
    expect(planArena({ ...budget, budgetBytes: 4000 * MIB }, rungs, SLAB)).toBe(2000 * MIB)
    expect(planArena({ ...budget, budgetBytes: 400 * MIB }, rungs, SLAB)).toBe(170 * MIB)
    expect(planArena({ ...budget, budgetBytes: 50 * MIB }, rungs, SLAB)).toBe(20 * MIB)
  })
})

const mib = (max: number) => fc.nat(max).map((n) => n * MIB)
const residentState = fc.record({
  bytes: mib(400),
  minKvBytes: fc.nat(12).map((n) => n * SLAB),
  usedKvBytes: fc.nat(8).map((n) => n * SLAB),
  pinned: fc.boolean(),
  busy: fc.boolean(),
  loadedAt: fc.nat(1000),
})
const state = (id: string) =>
  fc
    .record({
      budgetBytes: mib(2000),
      fixed: fc.option(
        fc.nat(40).map((n) => n * SLAB),
        { nil: undefined },
      ),
      changing: fc.boolean(),
      residents: fc.array(residentState, { maxLength: 6 }),
    })
    .map(({ budgetBytes, fixed, changing, residents }): DeviceState => {
      let spare = fixed ?? Infinity
      const named = residents.map((one, index) => {
        const minKvBytes_ = Math.min(one.minKvBytes, fixed ?? Infinity)
        const usedKvBytes = one.busy ? Math.min(one.usedKvBytes, spare) : 0
        spare -= usedKvBytes
        return { ...one, minKvBytes: minKvBytes_, usedKvBytes, name: `${id}${index}` }
      })
      return Object.assign(device(id, 0, named), { budgetBytes, fixedKvBytes: fixed, changing })
    })
const wish = fc.record({ weights: fc.nat(900), kv: fc.nat(40), blockUnits: fc.integer({ min: 1, max: 15 }) })

function usedKv(residents: readonly ResidentState[]): number {
  return residents.reduce((sum, { usedKvBytes }) => sum + usedKvBytes, 0)
}

function within(state_: DeviceState, staying: readonly ResidentState[], extra: number, kvBytes: number): boolean {
  const taken = staying.reduce((sum, { bytes }) => sum + bytes, state_.overheadBytes + extra)
  return taken + kvBytes <= state_.budgetBytes
}

/** A wait ends: somebody is asked to make room, nobody twice, and when all have there is enough. */
function expectRoom(on: DeviceState, { evict, drain, rest }: Room, need: number, minKv: number): void {
  const asked = [...evict, ...drain, ...rest]
  expect(new Set(asked).size).toBe(asked.length)
  expect(drain.length + rest.length > 0).toBe(!on.changing)
  if (on.changing) return
  const byName = new Map(on.residents.map((one) => [one.name, one]))
  for (const name of evict) expect(byName.get(name)).toMatchObject({ busy: false, pinned: false })
  for (const name of rest) expect(byName.get(name)).toMatchObject({ busy: true })
  const staying = on.residents.filter(({ name }) => !evict.includes(name) && !drain.includes(name))
  const smallest = (resting: readonly string[]): number => {
    const used = usedKv(staying.filter(({ name }) => !resting.includes(name)))
    return on.fixedKvBytes ?? Math.max(used, minKv, ...staying.map((one) => one.minKvBytes))
  }
  expect(within(on, staying, need, smallest(rest))).toBe(true)
  for (const name of rest) expect(within(on, staying, need, smallest(rest.filter((one) => one !== name)))).toBe(false)
}

describe('every plan', () => {
  it('keeps within the budget, evicts nobody busy, pinned or needlessly, and loads only what is not loaded', () => {
    fc.assert(
      fc.property(fc.tuple(state('a'), state('b')), wish, ([a, b], { weights, kv, blockUnits }) => {
        const wanted = demand('m', weights, {
          devices: ['a', 'b'],
          sequenceKvBytes: kv * SLAB,
          blockBytes: blockUnits * MIB,
        })
        const need = wanted.weightBytes + wanted.workspaceBytes
        const plan = planLoad([a, b], wanted)
        expect(plan.kind === 'refuse').toBe([a, b].every((one) => doesNotFit(one, wanted) !== undefined))
        if (plan.kind === 'refuse') return
        if (plan.kind === 'resident') throw new Error('it is not')
        const on = plan.device === 'a' ? a : b
        const going = new Set(plan.kind === 'load' ? plan.evict : plan.drain)
        for (const one of on.residents.filter(({ name }) => going.has(name))) {
          expect([one.pinned, one.busy]).toEqual([false, plan.kind === 'wait'])
        }
        expect(on.changing && going.size > 0).toBe(false)
        if (plan.kind === 'wait') {
          expectRoom(on, plan, need, minKvBytes(wanted, SLAB))
          return
        }
        expect(on.changing).toBe(false)
        const staying = on.residents.filter(({ name }) => !going.has(name))
        expect(within(on, staying, need, plan.kvBytes)).toBe(true)
        expect(plan.kvBytes).toBeGreaterThanOrEqual(Math.max(usedKv(on.residents), minKvBytes(wanted, SLAB)))
        for (const name of going) {
          const kept = on.residents.filter((one) => !going.has(one.name) || one.name === name)
          const smallest = Math.max(usedKv(kept), minKvBytes(wanted, SLAB), ...kept.map((one) => one.minKvBytes))
          expect(within(on, kept, need, on.fixedKvBytes ?? smallest)).toBe(false)
        }
      }),
      { numRuns: 2000 },
    )
  })

  it('of a lowered budget evicts nobody busy or pinned, and what stays fits unless that is pinned', () => {
    fc.assert(
      fc.property(state('a'), (on) => {
        const { evict, drain, rest } = planShrink(on)
        const byName = new Map(on.residents.map((one) => [one.name, one]))
        for (const name of evict) expect(byName.get(name)).toMatchObject({ busy: false, pinned: false })
        for (const name of drain) expect(byName.get(name)).toMatchObject({ busy: true, pinned: false })
        const staying = on.residents.filter(({ name }) => !evict.includes(name) && !drain.includes(name))
        const least = Math.max(0, ...staying.map((one) => one.minKvBytes))
        const fits = within(on, staying, 0, on.fixedKvBytes ?? least)
        expect(fits || on.fixedKvBytes !== undefined || staying.every((one) => one.pinned)).toBe(true)
        for (const name of rest) expect(byName.get(name)).toMatchObject({ busy: true })
        const used = usedKv(staying.filter(({ name }) => !rest.includes(name)))
        expect(used <= least || within(on, staying, 0, used) || on.fixedKvBytes !== undefined).toBe(true)
      }),
    )
  })

  it('gives KV memory no more than what is left, except one sequence of what is there', () => {
    fc.assert(
      fc.property(state('a'), (on) => {
        const target = kvTarget(on)
        const least = on.fixedKvBytes ?? Math.max(0, ...on.residents.map((one) => one.minKvBytes))
        expect(target === least || within(on, on.residents, 0, target)).toBe(true)
      }),
    )
  })
})
