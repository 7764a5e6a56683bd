/** Answers of the HTTP API on their way to readers of every kind, and connections that stop. */
import { describe, expect, it } from 'vitest'
import { GatewayError } from '../../gateway/errors.js'
import { answer, hold } from '../support/fake-services.js'
import { CHAT, chatBody, failure, httpBox } from '../support/http-box.js'
import { rawConnection, rawPost } from '../support/raw-http.js'

const box = httpBox()

describe('a whole answer', () => {
  it('that cannot be encoded is an error of its request', async () => {
    box.services.generator.script = (run) => {
      run.start()
      // JSON has none.
      run.text('x', 0, [1n as unknown as number])
      run.finish()
    }
    const answered = await box.post(CHAT, chatBody({ return_token_ids: true }))
    expect(answered).toMatchObject({ status: 500, json: failure('internal') })
  })

  it('is cut off when its reader stalls', async () => {
    await box.restart({ stallMs: 40 })
    box.services.generator.script = answer('x'.repeat(16 * 1024 * 1024))
    const { socket, closed } = await rawConnection(box.server.port)
    socket.write(rawPost(CHAT, chatBody()))
    socket.pause()
    await (await box.services.generator.run(0)).until(({ ended }) => ended)
    const counted = /edgeshift_http_requests_total\{route="\/v1\/chat\/completions",status="499"\} 1/
    while (!counted.test(await box.services.metrics.metrics())) await new Promise((resolve) => setImmediate(resolve))
    socket.resume()
    expect((await closed).length).toBeLessThan(16 * 1024 * 1024)
  })
})

describe('a stream', () => {
  it('is framed as server-sent events', async () => {
    const response = await fetch(box.server.url + CHAT, {
      method: 'POST',
      body: chatBody({ stream: true }),
      headers: { 'content-type': 'application/json' },
    })
    expect(Object.fromEntries(response.headers)).toMatchObject({
      'content-type': 'text/event-stream; charset=utf-8',
      'cache-control': 'no-cache',
      'x-accel-buffering': 'no',
      'x-edgeshift-variant': 'fake:int4',
    })
    const events = (await response.text()).split('\n\n')
    expect(events.pop()).toBe('')
    expect(events.pop()).toBe('data: [DONE]')
    expect(events.every((event) => /^data: \{[^\n]*\}$/.test(event))).toBe(true)
    expect(events.some((event) => event.includes('"usage"'))).toBe(false)
  })

  it('sends an error in-band once it has begun, and then no [DONE]', async () => {
    box.services.generator.script = (run) => {
      run.start()
      run.fail(new GatewayError('engine_failed', 'the engine died'))
    }
    const { socket, until } = await rawConnection(box.server.port)
    socket.write(rawPost(CHAT, chatBody({ stream: true })))
    const text = await until(/0\r\n\r\n$/)
    expect(text).toContain('HTTP/1.1 200')
    expect(text).toContain('data: {"error":{"message":"the engine died"')
    expect(text).not.toContain('[DONE]')
    socket.destroy()
  })

  it('is kept alive by comments while it is silent', async () => {
    await box.restart({ pingMs: 20 })
    box.services.generator.script = (run) => run.start()
    const { socket, until } = await rawConnection(box.server.port)
    socket.write(rawPost(CHAT, chatBody({ stream: true })))
    expect(await until(/: ping\n\n[^]*: ping\n\n/)).not.toContain('[DONE]')
    socket.destroy()
    await (await box.services.generator.run(0)).until(({ cancelled }) => cancelled)
  })

  it('pauses the work while its reader lags and resumes it after', async () => {
    box.services.generator.script = hold
    const { socket, until } = await rawConnection(box.server.port)
    socket.write(rawPost(CHAT, chatBody({ stream: true })))
    const run = await box.services.generator.run(0)
    run.start()
    await until(/assistant/)
    socket.pause()
    while (!run.paused) {
      run.text('x'.repeat(8192))
      await new Promise((resolve) => setImmediate(resolve))
    }
    socket.resume()
    await run.until(({ paused }) => !paused)
    run.finish()
    expect(await until(/\[DONE\]/)).toContain('"finish_reason":"stop"')
    socket.destroy()
  })

  it('is cut off and cancelled when its reader stalls', async () => {
    await box.restart({ stallMs: 40 })
    box.services.generator.script = hold
    const { socket, until } = await rawConnection(box.server.port)
    socket.write(rawPost(CHAT, chatBody({ stream: true })))
    const run = await box.services.generator.run(0)
    run.start()
    await until(/assistant/)
    socket.pause()
    while (!run.paused) {
      run.text('x'.repeat(8192))
      await new Promise((resolve) => setImmediate(resolve))
    }
    await run.until(({ cancelled }) => cancelled)
    expect(box.services.generator.active).toBe(0)
    socket.destroy()
  })

  it('takes a step of any size to a reader that keeps up, and what follows it', async () => {
    box.services.generator.script = hold
    const { socket, until, closed } = await rawConnection(box.server.port)
    socket.write(rawPost(CHAT, chatBody({ stream: true }), { connection: 'close' }))
    const run = await box.services.generator.run(0)
    run.start()
    await until(/assistant/)
    run.text('x'.repeat(8_000_000))
    await run.until(({ paused, cancelled }) => paused || cancelled)
    run.text('last words')
    await run.until(({ paused, cancelled }) => !paused || cancelled)
    run.finish()
    const text = await closed
    expect(text).toContain('last words')
    expect(text).toContain('[DONE]')
    expect(text.length).toBeGreaterThan(8_000_000)
  })

  it('is cut off when the source does not heed the pause', async () => {
    box.services.generator.script = hold
    const { socket, until } = await rawConnection(box.server.port)
    socket.write(rawPost(CHAT, chatBody({ stream: true })))
    const run = await box.services.generator.run(0)
    run.start()
    await until(/assistant/)
    socket.pause()
    while (!run.ended) {
      run.text('x'.repeat(65_536))
      await new Promise((resolve) => setImmediate(resolve))
    }
    expect(run.cancelled).toBe(true)
    socket.destroy()
  })

  it('is cancelled at once when the client goes', async () => {
    box.services.generator.script = (run) => run.start()
    for (let i = 0; i < 100; i++) {
      const { socket, until } = await rawConnection(box.server.port)
      socket.write(rawPost(CHAT, chatBody({ stream: true })))
      await until(/assistant/)
      socket.destroy()
      const run = await box.services.generator.run(i)
      await run.until(({ cancelled }) => cancelled)
    }
    expect(await box.services.metrics.metrics()).toContain('{route="/v1/chat/completions",status="499"} 100')
    expect(box.services.generator.active).toBe(0)
  })
})

describe('a connection', () => {
  it('that stops in its headers is closed with 408', async () => {
    await box.restart({ headersMs: 30, requestMs: 30, checkMs: 10 })
    const { socket, closed } = await rawConnection(box.server.port)
    socket.write(`POST ${CHAT} HTTP/1.1\r\nhost: localhost\r\n`)
    const text = await closed
    expect(text).toContain('HTTP/1.1 408')
    expect(text).toContain('"code":"deadline_exceeded"')
  })

  it('that stops in its body is closed with 408', async () => {
    await box.restart({ headersMs: 30, requestMs: 30, checkMs: 10 })
    const { socket, closed } = await rawConnection(box.server.port)
    socket.write(rawPost(CHAT, chatBody(), { 'content-length': '5000' }))
    expect(await closed).toContain('HTTP/1.1 408')
    expect(box.services.generator.runs).toHaveLength(0)
  })

  it('that does not speak HTTP is told so and closed', async () => {
    const { socket, closed } = await rawConnection(box.server.port)
    socket.write('hello there\r\n\r\n')
    expect(await closed).toMatch(/^HTTP\/1\.1 400 Bad Request\r\n[^]*"code":"invalid_request"/)
  })

  it('with a bad host header is told so', async () => {
    const { socket, until } = await rawConnection(box.server.port)
    socket.write('GET /health HTTP/1.1\r\nhost: a b\r\n\r\n')
    expect(await until(/\}\}$/)).toContain('HTTP/1.1 400')
    socket.destroy()
  })

  it('serves one request after another', async () => {
    const { socket, until } = await rawConnection(box.server.port)
    socket.write(
      Buffer.concat([rawPost(CHAT, chatBody()), rawPost(CHAT, chatBody({ stream: true })), rawPost(CHAT, '{')]),
    )
    const text = await until(/not valid JSON/)
    expect(text.match(/HTTP\/1\.1 \d+/g)).toEqual(['HTTP/1.1 200', 'HTTP/1.1 200', 'HTTP/1.1 400'])
    socket.destroy()
  })
})
