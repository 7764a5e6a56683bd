import { describe, expect, it } from 'vitest'
import { formatDryRun } from '../../gateway/cli/route.js'
import { decideRoute } from '../../gateway/router/decide.js'
import { describeDecision } from '../../gateway/router/dry-run.js'
import type { RouteRequest } from '../../gateway/router/facts.js'
import { modelFacts, routeRequest } from '../support/router-facts.js'

const LOADABLE = { state: 'unloaded', loadable: true, loadMs: 2000, room: ['n:int8', 'n:int4'] } as const
const WAITING = { state: 'unloaded', queueable: true, loadMs: 2000, room: ['n:fp16'] } as const
const other = modelFacts('n', ['ready', 'ready', 'ready'])

function run(
  rungs: Parameters<typeof modelFacts>[1],
  request: Partial<RouteRequest> = {},
  more: Parameters<typeof modelFacts>[2] = {},
) {
  const model = modelFacts('m', rungs, more)
  const models = [model, other]
  const asked = routeRequest(request)
  return describeDecision(asked, decideRoute(asked, models), models, model)
}

describe('a dry run', () => {
  it('tells what serves and when', () => {
    expect(run([{ waitMs: 250 }, 'ready', 'ready'])).toMatchObject({
      object: 'route',
      decision: 'serve',
      variant: 'm:fp16',
      device: 'cpu0',
      code: 'highest',
      prompt_tokens: 10,
      load: null,
      wait_ms: 250,
      first_token_ms: 350,
      answer_ms: 1350,
    })
  })

  it('tells what a load takes and evicts', () => {
    const dry = run([LOADABLE, 'failed', 'failed'])
    expect(dry.load).toEqual({
      bytes: 2e9,
      ms: 2000,
      evicts: [
        { variant: 'n:int8', bytes: 1.06e9 },
        { variant: 'n:int4', bytes: 0.56e9 },
      ],
      evicted_bytes: 1.62e9,
    })
    expect(dry.first_token_ms).toBe(2100)
    expect(formatDryRun(dry)).toContain('loads 2.00 GB in about 2000 ms, evicts n:int8, n:int4')
  })

  it('tells that the policy keeps to what is loaded', () => {
    const dry = run([LOADABLE, 'ready', 'ready'], {}, { policy: { prefer: 'resident' } })
    const reason = 'resident: int8 is loaded, fp16 would have to be'
    expect(dry).toMatchObject({ variant: 'm:int8', code: 'resident', reason, load: null })
  })

  it('tells what it would wait for', () => {
    const dry = run([WAITING, 'failed', 'failed'], { model: 'm:fp16' })
    expect(dry).toMatchObject({ decision: 'serve', waits_for: ['n:fp16'] })
    expect(formatDryRun(dry)).toContain('waits for n:fp16 to come to rest')
    expect(run(['loading', 'loading', 'loading'])).toMatchObject({ decision: 'wait', why: expect.any(String) })
  })

  it('tells why it would be refused, and how every rung stands', () => {
    const dry = run(['open', 'failed', 'unloaded'])
    expect(dry).toMatchObject({
      decision: 'refuse',
      code: 'engine_unavailable',
      rungs: [
        { id: 'm:fp16', status: 'ready', serves: false, why: 'fp16 failed 3 times in a row' },
        { id: 'm:int8', status: 'failed', serves: false, why: 'int8 failed' },
        { id: 'm:int4', status: 'unloaded', serves: false, needed_bytes: 0.56e9, why: 'int4 does not fit' },
      ],
    })
    expect(formatDryRun(dry).split('\n')[0]).toBe('refuse (engine_unavailable)')
  })
})
