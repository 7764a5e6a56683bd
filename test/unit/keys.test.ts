import * as fc from 'fast-check'
import { describe, expect, it } from 'vitest'
import { GatewayError } from '../../gateway/errors.js'
import { KeyedAccess } from '../../gateway/keys/access.js'
import { Meter } from '../../gateway/keys/meter.js'
import { Quota, type Ticket } from '../../gateway/keys/quota.js'
import { newKey } from '../../gateway/keys/secret.js'
import type { GenerateEvent } from '../../gateway/request.js'
import { answer, type FakeScript, fakeServices, hold } from '../support/fake-services.js'
import { requestOf } from '../support/requests.js'

/** The error a call throws. */
function thrown(work: () => unknown): GatewayError {
  try {
    work()
  } catch (error) {
    if (error instanceof GatewayError) return error
  }
  throw new Error('no GatewayError')
}

describe('a meter', () => {
  it('lets a minute of requests in at once, then one for each interval, and says when', () => {
    let now = 0
    const meter = new Meter({ requestsPerMinute: 60 }, () => now)
    for (let i = 0; i < 60; i++) meter.admit(0)
    expect(thrown(() => meter.admit(0))).toMatchObject({ code: 'rate_limit_exceeded', retryAfterMs: 1000 })
    now = 999
    expect(thrown(() => meter.admit(0)).retryAfterMs).toBe(1)
    now = 1000
    meter.admit(0)
    expect(thrown(() => meter.admit(0)).retryAfterMs).toBe(1000)
  })

  it('makes later requests wait for tokens that were not foreseen, and lets a prompt above the rate in when full', () => {
    let now = 0
    const meter = new Meter({ tokensPerMinute: 600 }, () => now)
    meter.admit(10_000)
    expect(thrown(() => meter.admit(1)).retryAfterMs).toBe(940_100)
    now = 940_100
    meter.admit(1)
    meter.charge(600)
    expect(thrown(() => meter.admit(0)).retryAfterMs).toBe(60_000)
  })

  it('gives nobody a fresh minute when the file is read again', () => {
    const meter = new Meter({ requestsPerMinute: 2 }, () => 0)
    meter.admit(0)
    meter.admit(0)
    meter.setRates({ requestsPerMinute: 2 })
    expect(thrown(() => meter.admit(0)).code).toBe('rate_limit_exceeded')
    meter.setRates({ requestsPerMinute: 3 })
    meter.admit(0)
    expect(thrown(() => meter.admit(0)).code).toBe('rate_limit_exceeded')
  })

  it('never admits more than a minute at once plus the rate over any time', () => {
    fc.assert(
      fc.property(fc.array(fc.integer({ min: 0, max: 5000 }), { maxLength: 200 }), (pauses) => {
        let now = 0
        let admitted = 0
        const meter = new Meter({ requestsPerMinute: 30 }, () => now)
        for (const pause of pauses) {
          now += pause
          try {
            meter.admit(0)
            admitted++
          } catch {}
        }
        expect(admitted).toBeLessThanOrEqual(30 + (now / 60_000) * 30 + 1e-6)
      }),
    )
  })
})

/** Access with one key of the rights given; `run` sends a request with it and gathers its events. */
function oneKey(rights: object, script: FakeScript = answer('Hello', ' world')) {
  const services = fakeServices(script)
  const key = newKey()
  const entry = { id: key.id, name: 'n', sha256: key.sha256, priority_ceiling: 0, admin: false, ...rights }
  const access = new KeyedAccess(services, [entry], () => 0)
  const run = async (fields: Parameters<typeof requestOf>[0] = {}): Promise<GenerateEvent[]> => {
    const events: GenerateEvent[] = []
    await new Promise<void>((resolve) => {
      access.admit(key.text).generator.generate(requestOf(fields), (event) => {
        events.push(event)
        if (event.type === 'usage' || event.type === 'error') resolve()
      })
    })
    return events
  }
  return { services, key, entry, access, run }
}

describe('a quota', () => {
  it('bounds what is in flight and what waits, and says when a place is likely to be free', () => {
    let now = 0
    const quota = new Quota({ maxConcurrent: 3, maxWaiting: 2 }, () => now)
    const [first, second] = [quota.enter(), quota.enter()]
    expect(thrown(() => quota.enter())).toMatchObject({ code: 'queue_full', retryAfterMs: 1000 })
    now = 400
    first.started()
    first.started()
    const third = quota.enter()
    expect(thrown(() => quota.enter())).toMatchObject({ code: 'rate_limit_exceeded', retryAfterMs: 1000 })
    now = 5000
    first.ended()
    first.ended()
    // One place came free in 5 s, one of the queue in 0.4 s.
    expect(thrown(() => quota.enter())).toMatchObject({ code: 'queue_full', retryAfterMs: 400 })
    second.started()
    const fourth = quota.enter()
    expect(thrown(() => quota.enter())).toMatchObject({ code: 'rate_limit_exceeded', retryAfterMs: 5000 })
    for (const ticket of [second, third, fourth]) ticket.ended()
    quota.setBounds({ maxConcurrent: 1 })
    const last = quota.enter()
    expect(thrown(() => quota.enter()).code).toBe('rate_limit_exceeded')
    last.ended()
    quota.setBounds({})
    for (let i = 0; i < 1000; i++) quota.enter()
  })

  it('never counts below nothing or above its bounds, whatever comes when', () => {
    const step = fc.record({ act: fc.constantFrom('enter', 'start', 'end'), at: fc.nat(20) })
    fc.assert(
      fc.property(fc.array(step, { maxLength: 60 }), fc.integer({ min: 1, max: 5 }), (steps, most) => {
        const quota = new Quota({ maxConcurrent: most, maxWaiting: most }, () => 0)
        const tickets: Ticket[] = []
        for (const { act, at } of steps) {
          const ticket = tickets[at % Math.max(1, tickets.length)]
          if (act === 'start') ticket?.started()
          else if (act === 'end') ticket?.ended()
          else {
            try {
              tickets.push(quota.enter())
            } catch (error) {
              if (!(error instanceof GatewayError)) throw error
            }
          }
        }
        for (const ticket of tickets) ticket.ended()
        // All places are free again, and no more than there are.
        for (let i = 0; i < most; i++) quota.enter()
        expect(() => quota.enter()).toThrow(GatewayError)
      }),
    )
  })
})

describe('access by key', () => {
  it('refuses what is no key, an unknown one, a wrong secret and a revoked one', () => {
    const { access, key } = oneKey({})
    const other = newKey()
    const wrong = `es_${key.id}_${other.text.slice(-43)}`
    for (const token of [undefined, '', 'sk-1', other.text, wrong, `${key.text}x`]) {
      expect(thrown(() => access.admit(token)).code).toBe('unauthorized')
    }
    expect(access.admit(key.text)).toMatchObject({ tenant: key.id, key: 'n', admin: false })
    access.use([])
    expect(thrown(() => access.admit(key.text)).code).toBe('unauthorized')
  })

  it('shows only the models of the key, and does not tell others from none', async () => {
    const { access, key, run } = oneKey({ models: ['other'] })
    const { models } = access.admit(key.text)
    expect(models.list().map(({ id }) => id)).toEqual(['other'])
    expect(thrown(() => models.find('chat'))).toMatchObject({ code: 'forbidden', param: 'model' })
    expect(thrown(() => models.find('none')).message).toBe(
      thrown(() => models.find('chat')).message.replace('chat', 'none'),
    )
    await expect(models.tokenize('fake', 'x', false)).rejects.toMatchObject({ code: 'forbidden' })
    expect(access.health(key.text)).toEqual({ status: 'ok', models: { other: {} } })
    expect(access.health(undefined)).toEqual({ status: 'ok', models: {} })
    expect(await run({ model: 'fake:int4' })).toMatchObject([{ type: 'error', error: { code: 'forbidden' } }])
    expect((await run({ model: 'other' })).at(-1)?.type).toBe('usage')
  })

  it.each([
    [0, 0, 0],
    [0, 7, 7],
    [5, 0, 5],
    [5, 9, 9],
    [-3, -3, -3],
  ])('with ceiling %i serves priority %i as %i', async (ceiling, asked, served) => {
    const { run, services } = oneKey({ priority_ceiling: ceiling })
    await run({ priority: asked })
    expect(services.generator.runs[0]?.request.priority).toBe(served)
  })

  it.each<[string, object, Parameters<typeof requestOf>[0], number]>([
    ['a stream is interactive', {}, {}, 0],
    ['a whole answer is batch work', {}, { whole: true }, 10],
    ['unless it says otherwise', {}, { whole: true, priority: 0 }, 0],
    ['all of a batch key is', { class: 'batch' }, {}, 10],
    ['but for what says otherwise', { class: 'batch' }, { priority: -1 }, -1],
    ['nothing of an interactive key is', { class: 'interactive' }, { whole: true }, 0],
    ['a ceiling holds for both', { class: 'interactive', priority_ceiling: 3 }, { whole: true }, 3],
    ['and takes nothing from what is below it', { priority_ceiling: 3 }, { whole: true }, 10],
  ])('%s', async (_name, rights, fields, served) => {
    const { run, services } = oneKey({ priority_ceiling: -1, ...rights })
    await run(fields)
    expect(services.generator.runs[0]?.request.priority).toBe(served)
  })

  it('refuses a priority above the ceiling', async () => {
    const { run } = oneKey({ priority_ceiling: 5 })
    expect(await run({ priority: 4 })).toMatchObject([
      { type: 'error', error: { code: 'forbidden', param: 'priority' } },
    ])
  })

  it('gives a request the weight of its key', async () => {
    const { run, services } = oneKey({ weight: 4 })
    await run()
    expect(services.generator.runs[0]?.request.weight).toBe(4)
  })

  it('charges what was really used', async () => {
    const { run } = oneKey({ tokens_per_minute: 10 })
    // 3 of the prompt and 2 of the answer by the usage, twice.
    await run()
    await run()
    const [refused] = await run()
    expect(refused).toMatchObject({ type: 'error', error: { code: 'rate_limit_exceeded' } })
  })

  it.each([
    ['the prompt once, however often it is echoed', 0, 'usage'],
    ['what was generated after it', 60, 'error'],
  ])('charges a request that is broken off for %s', async (_name, generated, next) => {
    const { access, key, run, services } = oneKey({ tokens_per_minute: 1100 }, hold)
    const prompt = Array.from({ length: 1000 }, () => 5)
    const request = requestOf({ input: { kind: 'tokens', tokens: prompt }, echo: true, n: 2 })
    const handle = access.admit(key.text).generator.generate(request, () => undefined)
    const broken = await services.generator.run(0)
    broken.start()
    for (const choice of [0, 1]) broken.text('the prompt', choice, prompt)
    for (const choice of [0, 1]) broken.text('the answer', choice, prompt.slice(0, generated))
    handle.cancel()
    services.generator.script = answer('x')
    expect((await run()).at(-1)?.type).toBe(next)
  })

  it('gives back what did no work', async () => {
    const full = new GatewayError('queue_full', 'full')
    const { run, services } = oneKey({ requests_per_minute: 1 }, (failing) => failing.fail(full))
    await run()
    services.generator.script = answer('x')
    expect((await run()).at(-1)?.type).toBe('usage')
    expect(await run()).toMatchObject([{ error: { code: 'rate_limit_exceeded' } }])
  })

  it('counts a request whose client gave up', async () => {
    const { access, key, run } = oneKey({ requests_per_minute: 1 }, hold)
    access
      .admit(key.text)
      .generator.generate(requestOf({}), () => undefined)
      .cancel()
    expect(await run()).toMatchObject([{ error: { code: 'rate_limit_exceeded' } }])
  })

  it('may use what is left when a model of a key is gone', async () => {
    const { access, key, run } = oneKey({ models: ['gone', 'other'] })
    expect(
      access
        .admit(key.text)
        .models.list()
        .map(({ id }) => id),
    ).toEqual(['other'])
    expect(await run({ model: 'gone' })).toMatchObject([{ type: 'error', error: { code: 'forbidden' } }])
    expect((await run({ model: 'other' })).at(-1)?.type).toBe('usage')
  })

  it('takes no place for what its rate refuses, and frees those of what ends, also over a reload', async () => {
    const { access, entry, key, run, services } = oneKey({ max_concurrent: 1, requests_per_minute: 2 }, hold)
    const { generator } = access.admit(key.text)
    const running = generator.generate(requestOf(), () => undefined)
    access.use([entry])
    expect(await run()).toMatchObject([{ error: { message: 'this key has 1 requests in flight already' } }])
    running.cancel()
    services.generator.script = answer('x')
    expect((await run()).at(-1)?.type).toBe('usage')
    for (let i = 0; i < 2; i++)
      expect(await run()).toMatchObject([{ error: { message: expect.stringContaining('per minute') } }])
  })

  it('keeps consumption over a reload', async () => {
    const { access, entry, run } = oneKey({ requests_per_minute: 1 })
    await run()
    access.use([entry])
    expect(await run()).toMatchObject([{ error: { code: 'rate_limit_exceeded' } }])
  })
})
