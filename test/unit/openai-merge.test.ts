import { describe, expect, it } from 'vitest'
import { GatewayError } from '../../gateway/errors.js'
import { decodeCompletion } from '../../gateway/protocols/decode.js'
import { generateAll } from '../../gateway/protocols/merge.js'
import type { GenerateEvent } from '../../gateway/request.js'
import { fakeServices, type FakeServices, hold } from '../support/fake-services.js'

async function start(services: FakeServices) {
  const { requests } = decodeCompletion(
    { model: 'fake', prompt: ['a', 'b'], n: 2 },
    { id: 'req-1', tenant: '' },
    services,
  )
  const events: GenerateEvent[] = []
  const handle = generateAll(services.generator, requests, (event) => events.push(event))
  return { events, handle, first: await services.generator.run(0), second: await services.generator.run(1) }
}

describe('several prompts', () => {
  it('become one stream of events with one start and one usage', async () => {
    const { events, first, second } = await start(fakeServices(hold))
    second.start()
    first.start()
    second.text('y', 1)
    first.text('x', 0)
    second.finish(4)
    first.finish(6)
    expect(events).toEqual([
      { type: 'started', variant: 'fake:int4', reason: 'only rung' },
      { type: 'text', index: 3, text: 'y', tokens: [1] },
      { type: 'text', index: 0, text: 'x', tokens: [1] },
      { type: 'finished', index: 2, reason: 'stop' },
      { type: 'finished', index: 3, reason: 'stop' },
      { type: 'finished', index: 0, reason: 'stop' },
      { type: 'finished', index: 1, reason: 'stop' },
      { type: 'usage', usage: { promptTokens: 6, completionTokens: 10, cachedTokens: 0 } },
    ])
  })

  it('fail together, once', async () => {
    const services = fakeServices(hold)
    const { events, first, second } = await start(services)
    first.start()
    first.fail(new GatewayError('engine_failed', 'died'))
    expect(second.cancelled).toBe(true)
    expect(events.map(({ type }) => type)).toEqual(['started', 'error'])
    expect(services.generator.active).toBe(0)
  })

  it('are cancelled, paused and resumed together', async () => {
    const { events, handle, first, second } = await start(fakeServices(hold))
    handle.pause()
    expect([first.paused, second.paused]).toEqual([true, true])
    handle.resume()
    expect([first.paused, second.paused]).toEqual([false, false])
    handle.cancel()
    handle.cancel()
    expect([first.cancelled, second.cancelled]).toEqual([true, true])
    expect(events).toMatchObject([{ type: 'error', error: { code: 'cancelled' } }])
  })

  it('start no further request once one has failed at once', () => {
    const services = fakeServices(hold)
    const { generator } = services
    const generate = generator.generate.bind(generator)
    generator.generate = (request, sink) => {
      const handle = generate(request, sink)
      handle.cancel()
      return handle
    }
    const { requests } = decodeCompletion({ model: 'fake', prompt: ['a', 'b'] }, { id: 'r', tenant: '' }, services)
    const events: GenerateEvent[] = []
    generateAll(generator, requests, (event) => events.push(event))
    expect(generator.runs).toHaveLength(1)
    expect(events).toHaveLength(1)
  })
})
