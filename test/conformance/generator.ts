/** The contract of Generator (gateway/request.ts), to be run over every implementation. */
import { EventEmitter, once } from 'node:events'
import { describe, expect, it } from 'vitest'
import type { GenerateEvent, GenerateHandle, GenerateRequest, Generator } from '../../gateway/request.js'
import { DEFAULT_SAMPLING } from '../support/sampling.js'

/** A generator that answers by itself with more than one text event per choice, yielding between them. */
export interface GeneratorUnderTest {
  generator: Generator
  /** A model that it serves. */
  model: string
}

/** One request's events; `ended` resolves with the last one. */
class Recording {
  readonly events: GenerateEvent[] = []
  readonly handle: GenerateHandle
  readonly ended: Promise<GenerateEvent>

  constructor(
    generator: Generator,
    request: GenerateRequest,
    onEvent: (event: GenerateEvent, recording: Recording) => void = () => undefined,
  ) {
    const ends = new EventEmitter()
    this.ended = once(ends, 'end').then(([event]: GenerateEvent[]) => event ?? Promise.reject(new Error('no event')))
    this.handle = generator.generate(request, (event) => {
      this.events.push(event)
      if (event.type === 'usage' || event.type === 'error') ends.emit('end', event)
      onEvent(event, this)
    })
  }

  get types(): string[] {
    return this.events.map(({ type }) => type)
  }
}

/** Several turns of the event loop, in which whatever is still running shows itself. */
async function settle(): Promise<void> {
  for (let turn = 0; turn < 20; turn++) await new Promise((resolve) => setImmediate(resolve))
}

let count = 0

function requestOf(model: string, n = 1): GenerateRequest {
  return {
    id: `conformance-${count++}`,
    model,
    input: { kind: 'text', text: 'ab' },
    sampling: { ...DEFAULT_SAMPLING, seed: 7 },
    stop: [],
    maxTokens: 8,
    echo: false,
    n,
    priority: 0,
    deadlineMs: 0,
    tenant: '',
  }
}

/** Declares the suite for one implementation. */
export function describeGenerator(name: string, make: () => GeneratorUnderTest): void {
  describe(`${name} is a Generator`, () => {
    it.each([1, 3])('that starts once, finishes %i choices once each and ends with usage', async (n) => {
      const { generator, model } = make()
      const recording = new Recording(generator, requestOf(model, n))
      expect((await recording.ended).type).toBe('usage')
      await settle()
      const { types, events } = recording
      expect(types[0]).toBe('started')
      expect(types.at(-1)).toBe('usage')
      expect(types.filter((type) => type !== 'text').slice(1, -1)).toEqual(Array.from({ length: n }, () => 'finished'))
      for (let index = 0; index < n; index++) {
        const own = events.filter((event) => 'index' in event && event.index === index).map(({ type }) => type)
        expect(own.length).toBeGreaterThan(2)
        expect(own.indexOf('finished')).toBe(own.length - 1)
      }
    })

    it('that reports usage which agrees with the tokens it gave', async () => {
      const { generator, model } = make()
      const recording = new Recording(generator, requestOf(model, 2))
      const end = await recording.ended
      const given = recording.events.reduce((sum, event) => sum + (event.type === 'text' ? event.tokens.length : 0), 0)
      expect(end).toMatchObject({ type: 'usage', usage: { completionTokens: given } })
    })

    it('whose cancel before the first event ends with one error', async () => {
      const { generator, model } = make()
      const recording = new Recording(generator, requestOf(model))
      recording.handle.cancel()
      recording.handle.cancel()
      await recording.ended
      await settle()
      expect(recording.events.at(-1)).toMatchObject({ type: 'error', error: { code: 'cancelled' } })
      expect(recording.types.filter((type) => type === 'error' || type === 'usage')).toEqual(['error'])
    })

    it('whose cancel from inside the sink lets nothing follow', async () => {
      const { generator, model } = make()
      const recording = new Recording(generator, requestOf(model), (event, { handle }) => {
        if (event.type === 'text') handle.cancel()
      })
      expect(await recording.ended).toMatchObject({ type: 'error', error: { code: 'cancelled' } })
      await settle()
      expect(recording.types).toEqual(['started', 'text', 'error'])
    })

    it('whose methods do nothing after the end', async () => {
      const { generator, model } = make()
      const recording = new Recording(generator, requestOf(model))
      await recording.ended
      const before = recording.events.length
      for (const method of ['pause', 'resume', 'cancel', 'pause', 'cancel'] as const) recording.handle[method]()
      await settle()
      expect(recording.events).toHaveLength(before)
    })

    it('that goes on after a pause and loses nothing', async () => {
      const { generator, model } = make()
      const whole = new Recording(generator, requestOf(model))
      await whole.ended
      const paused = new Recording(generator, requestOf(model), (event, { handle }) => {
        if (event.type !== 'text') return
        handle.pause()
        setImmediate(() => handle.resume())
      })
      await paused.ended
      expect(textOf(paused)).toBe(textOf(whole))
    })
  })
}

function textOf({ events }: Recording): string {
  return events.map((event) => (event.type === 'text' ? event.text : '')).join('')
}
