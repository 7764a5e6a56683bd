import * as fc from 'fast-check'
import { afterEach, beforeEach, describe, expect, it, vi } from 'vitest'
import { GatewayError } from '../../gateway/errors.js'
import type { GenerateEvent } from '../../gateway/request.js'
import type { ReaderHandle, StreamRecord } from '../../gateway/resume/record.js'
import { type StreamLimits, Streams } from '../../gateway/resume/streams.js'
import { EventWindow } from '../../gateway/resume/window.js'
import { FakeGenerator, type FakeRun, hold } from '../support/fake-services.js'
import { requestOf } from '../support/requests.js'

const LIMITS: StreamLimits = { graceMs: 1000, maxStreamBytes: 8192, maxBytes: 20_000 }
const SHAPE = { kind: 'chat', choices: 1, includeUsage: false, includeTokenIds: false } as const

/** Lets readers catch up; far less than a grace. */
function settle(): void {
  for (let turn = 0; turn < 20; turn++) vi.advanceTimersByTime(1)
}

/** What one reader was given. */
class Reading {
  readonly numbers: number[] = []
  readonly events: GenerateEvent[] = []
  readonly sink = (event: GenerateEvent, number: number): void => {
    this.numbers.push(number)
    this.events.push(event)
  }

  get text(): string {
    return this.events.map((event) => (event.type === 'text' ? event.text : '')).join('')
  }
}

let generator: FakeGenerator
let streams: Streams
beforeEach(() => {
  vi.useFakeTimers()
  generator = new FakeGenerator(hold)
  streams = new Streams(LIMITS)
})
afterEach(() => vi.useRealTimers())

/** A stream that is being read, and its run. */
function begin(
  id = 'req-1',
  tenant = 'a',
): { reading: Reading; reader: ReaderHandle; run: FakeRun; record: StreamRecord } {
  const reading = new Reading()
  const generate = (sink: (event: GenerateEvent) => void) => generator.generate(requestOf({ id }), sink)
  const reader = streams.start({ id, tenant, shape: SHAPE, generate }, reading.sink)
  const run = generator.runs.at(-1)
  if (!run) throw new Error('no run')
  run.start()
  return { reading, reader, run, record: streams.find(id, tenant) }
}

/** Reads a stream again from its start, to its newest event. */
function again(record: StreamRecord, after = 0): { reading: Reading; reader: ReaderHandle } {
  const reading = new Reading()
  const reader = record.attach(reading.sink, after)
  settle()
  return { reading, reader }
}

describe('a stream without a reader', () => {
  it('goes on and is read again from its start, each event once', () => {
    const { reading, reader, run, record } = begin()
    run.text('one')
    reader.leave()
    run.text('two')
    expect(reading.text).toBe('one')
    const second = again(record)
    run.text('three')
    run.finish()
    settle()
    expect(second.reading.text).toBe('onetwothree')
    expect(second.reading.numbers).toEqual([1, 2, 3, 4, 5, 6])
    expect(run.cancelled).toBe(false)
  })

  it('is cancelled after its grace, kept once more to say so, then forgotten', () => {
    const { reader, run, record } = begin()
    reader.leave()
    vi.advanceTimersByTime(999)
    expect(run.cancelled).toBe(false)
    vi.advanceTimersByTime(1)
    expect(run.cancelled).toBe(true)
    const late = again(record)
    expect(late.reading.events.at(-1)).toMatchObject({ type: 'error', error: { code: 'cancelled' } })
    late.reader.leave()
    vi.advanceTimersByTime(1000)
    expect(() => streams.find('req-1', 'a')).toThrow(/no longer kept/)
    expect([streams.size, streams.bytes]).toEqual([0, 0])
  })

  it('is paused when what nobody has read fills half of its window, and nothing unread is lost', () => {
    const { reader, run, record } = begin()
    reader.leave()
    let said = 0
    while (!run.paused && said < 1000) run.text(`${said++},`)
    expect(said).toBeLessThan(40)
    expect(run.paused).toBe(true)
    const { reading } = again(record)
    expect(reading.text).toBe(Array.from({ length: said }, (_, i) => `${i},`).join(''))
    expect(run.paused).toBe(false)
  })

  it('is cancelled at once when the server stops', () => {
    const { reader, run } = begin()
    streams.close()
    expect(run.cancelled).toBe(false)
    reader.leave()
    expect(run.cancelled).toBe(true)
    expect(streams.bytes).toBe(0)
  })
})

describe('a reader', () => {
  it('that lags pauses the request, and gets all in order when it goes on', () => {
    const { reading, reader, run } = begin()
    reader.pause()
    expect(run.paused).toBe(true)
    run.text('late')
    expect(reading.text).toBe('')
    reader.resume()
    settle()
    run.text('r')
    expect(reading.text).toBe('later')
    expect(run.paused).toBe(false)
  })

  it('ends when another one takes its place, and no longer pauses the request', () => {
    const { reading, reader, run, record } = begin()
    reader.pause()
    const second = again(record)
    expect(reading.events.at(-1)).toMatchObject({ type: 'error', error: { code: 'cancelled' } })
    reader.leave()
    reader.pause()
    expect(run.paused).toBe(false)
    run.text('x')
    settle()
    expect(second.reading.text).toBe('x')
  })

  it('catches up a slice at a time, so that its queue can say stop', () => {
    const { reader, run, record } = begin()
    for (let i = 0; i < 20; i++) run.text('a')
    for (let i = 0; i < 25; i++) run.text('b')
    reader.leave()
    const reading = new Reading()
    const slow = record.attach(reading.sink, 0)
    expect(reading.numbers).toEqual([])
    vi.advanceTimersToNextTimer()
    const first = reading.numbers.length
    expect(first).toBeGreaterThan(0)
    expect(first).toBeLessThan(record.window.last)
    slow.pause()
    vi.advanceTimersByTime(10)
    expect(reading.numbers).toHaveLength(first)
    slow.resume()
    vi.advanceTimersByTime(10)
    expect(reading.numbers).toHaveLength(record.window.last)
  })

  it('that asks for what has not happened, or is no longer kept, is told so and disturbs nobody', () => {
    const { reading, run, record } = begin()
    expect(() => record.attach(() => undefined, 9)).toThrow(/has had 1 events, not 9/)
    for (let i = 0; i < 200; i++) run.text('some text')
    expect(() => record.attach(() => undefined, 1)).toThrow(/events before \d+ are no longer kept/)
    expect(reading.events.every(({ type }) => type !== 'error')).toBe(true)
    const last = record.window.last
    expect(again(record, last - 3).reading.numbers.slice(-3)).toEqual([last - 2, last - 1, last])
  })
})

describe('memory', () => {
  it('of a stream stays below its bound; what began it and changed its rung is kept', () => {
    const { run, record } = begin()
    const degraded = {
      type: 'degraded',
      index: 0,
      variant: 'fake:fp16',
      reason: 'r',
      cause: 'engine_failed',
      replayedTokens: 0,
    } as const
    run.emit(degraded)
    for (let i = 0; i < 2000; i++) {
      run.text('some text')
      expect(record.window.bytes).toBeLessThanOrEqual(LIMITS.maxStreamBytes)
    }
    const { reading } = again(record, record.window.last)
    expect(reading.events.slice(0, 2)).toMatchObject([{ type: 'started' }, degraded])
  })

  it('of all streams stays below its bound, at the cost of the tenant that holds most', () => {
    const modest = begin('req-modest', 'modest')
    modest.run.text('x')
    modest.reader.leave()
    for (let i = 0; i < 10; i++) {
      const { reader, run } = begin(`req-${i}`, 'greedy')
      for (let n = 0; n < 20; n++) run.text('some text')
      reader.leave()
      expect(streams.bytes).toBeLessThanOrEqual(LIMITS.maxBytes)
    }
    expect(again(modest.record).reading.text).toBe('x')
    expect(() => streams.find('req-0', 'greedy')).toThrow(GatewayError)
    expect(generator.runs[1]?.cancelled).toBe(true)
  })

  it('of streams that are being read is taken from their past', () => {
    const all = Array.from({ length: 8 }, (_, i) => begin(`req-${i}`))
    for (let n = 0; n < 40; n++) for (const { run } of all) run.text(String(n % 10))
    expect(streams.bytes).toBeLessThanOrEqual(LIMITS.maxBytes)
    for (const { reading } of all) expect(reading.text).toBe('0123456789'.repeat(4))
  })
})

it('another tenant finds no stream', () => {
  begin('req-1', 'a')
  expect(() => streams.find('req-1', 'b')).toThrow(/there is no such stream/)
  expect(() => streams.find('req-1', '')).toThrow(/there is no such stream/)
})

describe('any sequence of leaving, coming back and lagging', () => {
  it('gives the client every event exactly once', () => {
    const action = fc.constantFrom('text', 'text', 'text', 'leave', 'back', 'pause', 'resume', 'turn')
    fc.assert(
      fc.property(fc.array(action, { maxLength: 80 }), (actions) => {
        streams = new Streams(LIMITS)
        const { reader: first, run, record, reading: firstReading } = begin(`req-${Math.random()}`)
        let reader = first
        let reading = firstReading
        let after = 0
        let said = ''
        const got: [number, string][] = []
        const collect = (): void => {
          reading.events.forEach((event, i) => {
            const number = reading.numbers[i] ?? 0
            if (number <= after) return
            after = number
            if (event.type === 'text') got.push([number, event.text])
          })
        }
        const back = (): void => {
          collect()
          ;({ reading, reader } = again(record, after))
        }
        for (const [i, act] of actions.entries()) {
          if (act === 'text' && !run.paused) {
            said += `${i},`
            run.text(`${i},`)
          } else if (act === 'leave') reader.leave()
          else if (act === 'back') back()
          else if (act === 'pause') reader.pause()
          else if (act === 'resume') reader.resume()
          else if (act === 'turn') settle()
        }
        back()
        run.finish()
        settle()
        collect()
        expect(got.map(([, text]) => text).join('')).toBe(said)
        expect(new Set(got.map(([number]) => number)).size).toBe(got.length)
      }),
      { numRuns: 300 },
    )
  })
})

describe('a window', () => {
  it('counts the characters it dropped from choices with log probabilities', () => {
    const window = new EventWindow()
    const logprobs = [{ id: 1, token: 'né😀', logprob: -1, top: [] }]
    window.push({ type: 'text', index: 1, text: 'né😀', tokens: [1], logprobs })
    window.push({ type: 'text', index: 0, text: 'abc', tokens: [1] })
    window.trim(0, 2)
    expect([...window.droppedCharacters]).toEqual([undefined, 3])
    expect(window.bytes).toBe(0)
  })
})
