import { describe, expect, it } from 'vitest'
import { chooseRung, findTarget } from '../../gateway/router/route.js'
import type { ModelEntry, VariantEntry } from '../../gateway/services.js'

type State = VariantEntry['state']

function model(id: string, tags: string[], [fp16, int8, int4]: [State, State, State]): ModelEntry {
  const rung = (precision: VariantEntry['precision'], state: State): VariantEntry => {
    return { name: `${id}:${precision}`, precision, state, weightBytes: 1, device: 'cpu0' }
  }
  const variants = [rung('fp16', fp16), rung('int8', int8), rung('int4', int4)]
  return { id, tags, maxModelLen: 100, created: 0, variants }
}

const MODELS = [
  model('a', ['chat', 'b'], ['ready', 'ready', 'ready']),
  model('b', ['chat'], ['ready', 'ready', 'ready']),
]

const serve = (variant: string, reason: string) => ({ kind: 'serve', route: { model: 'a', variant, reason } })

describe('findTarget', () => {
  it.each([
    ['a', 'a', undefined],
    ['a:int8', 'a', 'a:int8'],
    ['chat', 'a', undefined],
    ['b', 'b', undefined],
  ])('%s means model %s, rung %s', (name, id, rung) => {
    const target = findTarget(name, MODELS)
    expect([target?.model.id, target?.rung?.name]).toEqual([id, rung])
  })

  it.each(['', 'c', 'a:', 'a:int2', ':int8', 'chat:int8', 'A'])('%j means nothing', (name) => {
    expect(findTarget(name, MODELS)).toBeUndefined()
  })
})

describe('chooseRung', () => {
  const choose = (name: string, states: [State, State, State]) => {
    const target = findTarget(name, [model('a', ['chat'], states)])
    if (!target) throw new Error(`${name} is unknown`)
    return chooseRung(target)
  }

  it.each<[string, [State, State, State], string, string]>([
    ['a', ['ready', 'ready', 'ready'], 'a:fp16', 'highest rung'],
    ['chat', ['ready', 'failed', 'loading'], 'a:fp16', 'highest rung'],
    ['a', ['loading', 'ready', 'ready'], 'a:int8', 'highest ready rung; fp16 loading'],
    ['a', ['failed', 'unloaded', 'ready'], 'a:int4', 'highest ready rung; fp16 failed, int8 unloaded'],
    ['a:int4', ['ready', 'ready', 'ready'], 'a:int4', 'requested'],
  ])('%s with %j is served by %s: %s', (name, states, variant, reason) => {
    expect(choose(name, states)).toEqual(serve(variant, reason))
  })

  it.each<[string, [State, State, State], string]>([
    ['a', ['loading', 'loading', 'loading'], 'wait'],
    ['a', ['failed', 'loading', 'unloaded'], 'wait'],
    ['a', ['failed', 'failed', 'failed'], 'failed'],
    ['a', ['unloaded', 'failed', 'failed'], 'failed'],
    ['a:fp16', ['loading', 'ready', 'ready'], 'wait'],
    ['a:fp16', ['failed', 'ready', 'ready'], 'failed'],
  ])('%s with %j: %s', (name, states, kind) => {
    expect(choose(name, states).kind).toBe(kind)
  })
})
