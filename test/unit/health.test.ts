import { describe, expect, it } from 'vitest'
import { reportHealth } from '../../gateway/health.js'
import { servingStatus } from '../../gateway/protocols/grpc/health.js'
import type { ModelFacts } from '../../gateway/router/facts.js'
import { modelFacts, type RungSketch } from '../support/router-facts.js'

type Rungs = [RungSketch, RungSketch, RungSketch]

const report = (models: ModelFacts[], engineUp = true, draining = false) =>
  reportHealth({ models, engineUp, draining, config: [] })

describe('health', () => {
  it.each<[Rungs, string]>([
    [['ready', 'ready', 'ready'], 'ok'],
    [['loadable', 'unloaded', 'unloaded'], 'ok'],
    [['ready', 'loading', 'loading'], 'ok'],
    [['loading', 'loading', 'loading'], 'loading'],
    [['failed', 'failed', 'failed'], 'loading'],
    [['open', 'open', 'open'], 'loading'],
    [['ready', 'failed', 'ready'], 'degraded'],
    [['ready', 'open', 'ready'], 'degraded'],
  ])('of one model with %j: %s', (rungs, status) => {
    expect(report([modelFacts('m', rungs)]).status).toBe(status)
  })

  it('is degraded while a model stands below its best rung, with an alarm when it flaps', () => {
    const lower = modelFacts('m', ['ready', 'ready', 'ready'], { level: 'm:int4' })
    expect(report([lower])).toMatchObject({ status: 'degraded' })
    expect(report([lower])).not.toHaveProperty('alarms')
    expect(report([{ ...lower, flapping: true }]).alarms).toEqual(["'m' moves to and fro; it stays at m:int4"])
  })

  it('of several models does not hang on one that has failed for good', () => {
    const broken = modelFacts('b', ['failed', 'failed', 'failed'])
    expect(report([modelFacts('a', ['ready', 'ready', 'ready']), broken]).status).toBe('degraded')
    const coming = modelFacts('b', ['failed', 'loading', 'failed'])
    expect(report([modelFacts('a', ['ready', 'ready', 'ready']), coming]).status).toBe('loading')
  })

  it('is loading without an engine and draining when it stops', () => {
    const models = [modelFacts('m', ['ready', 'ready', 'ready'])]
    expect(report(models, false).status).toBe('loading')
    expect(report(models, true, true).status).toBe('draining')
  })

  it('has what of the configuration is not in use, which changes no state', () => {
    const inputs = { models: [modelFacts('m', ['ready', 'ready', 'ready'])], engineUp: true, draining: false }
    expect(reportHealth({ ...inputs, config: ['m.yaml:1:1: later'] })).toMatchObject({
      status: 'ok',
      config_remarks: ['m.yaml:1:1: later'],
    })
    expect(reportHealth({ ...inputs, config: [] })).not.toHaveProperty('config_remarks')
  })

  it('is told over gRPC by model and rung, breakers included', () => {
    const told = report([modelFacts('m', ['open', 'loadable', 'failed'])])
    expect(told.models).toEqual({ m: { fp16: 'broken', int8: 'on_demand', int4: 'failed' } })
    const names = ['', 'm', 'm:fp16', 'm:int8', 'm:int4', 'x']
    expect(names.map((name) => servingStatus(told, name))).toEqual([
      'SERVING',
      'SERVING',
      'NOT_SERVING',
      'SERVING',
      'NOT_SERVING',
      'SERVICE_UNKNOWN',
    ])
  })
})
