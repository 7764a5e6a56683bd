import { pino } from 'pino'
import type { SequenceListener, Submission } from '../../gateway/engine-client/session.js'
import { RunTelemetry } from '../../gateway/generate/observer.js'
import { Pipeline, type EngineAccess } from '../../gateway/generate/pipeline.js'
import { Metrics } from '../../gateway/metrics.js'
import { FinishReason } from '../../proto/gen/edgeshift/v1/engine.js'
import { FakeGenerator, type FakeRun } from '../support/fake-services.js'
import { fakeText } from '../support/fake-text.js'
import { modelFacts, routesOf } from '../support/router-facts.js'
import { describeGenerator } from './generator.js'

const PIECES = ['a', 'b', 'c', 'd']

/** Gives every choice one piece per turn of the event loop, none while paused. */
function play(run: FakeRun): void {
  run.start()
  setImmediate(() => playFrom(run, 0))
}

function playFrom(run: FakeRun, next: number): void {
  if (run.ended) return
  const { n } = run.request
  const piece = PIECES[next]
  if (piece === undefined) return run.finish(PIECES.length * n)
  const held = run.paused
  if (!held) for (let index = 0; index < n && !run.ended; index++) run.text(piece, index)
  setImmediate(() => playFrom(run, held ? next : next + 1))
}

/** An engine session that gives every sequence one token per turn of the event loop. */
class PlayingSession {
  readonly open = true
  readonly #running = new Map<number, { listener: SequenceListener; next: number; paused: boolean }>()
  #last = 0

  submit(_submission: Submission, listener: SequenceListener): number {
    const id = ++this.#last
    this.#running.set(id, { listener, next: 0, paused: false })
    setImmediate(() => this.#step(id))
    return id
  }

  cancel(id: number): void {
    this.#running.delete(id)
  }

  setPaused(id: number, paused: boolean): void {
    const sequence = this.#running.get(id)
    if (sequence) sequence.paused = paused
  }

  #step(id: number): void {
    const sequence = this.#running.get(id)
    if (!sequence) return
    if (!sequence.paused) {
      const token = PIECES[sequence.next++]?.charCodeAt(0) ?? 0
      const last = sequence.next === PIECES.length
      if (last) this.#running.delete(id)
      sequence.listener.onDelta({
        sequenceId: id,
        tokens: [token],
        logprobs: [],
        promptLogprobs: [],
        finishReason: last ? FinishReason.LENGTH : FinishReason.UNSPECIFIED,
      })
    }
    setImmediate(() => this.#step(id))
  }
}

function pipeline(): Pipeline {
  const text = fakeText()
  const models = {
    ...routesOf(modelFacts('m', ['ready', 'ready', 'ready'])),
    textOf: () => text,
    contextLimit: () => 32,
  }
  const session = new PlayingSession()
  const engine: EngineAccess = {
    sessionAt: () => session,
    up: true,
    waiting: 0,
    waitFor: async (probe) => probe(),
    confirm: async () => undefined,
  }
  const limits = { maxPromptTokens: 100, engineWaitMs: 1000, failoverWaitMs: 1000, maxEngineWaiting: 4 }
  return new Pipeline(models, engine, limits, new RunTelemetry(new Metrics('test'), pino({ level: 'silent' }), false))
}

describeGenerator('FakeGenerator', () => ({ generator: new FakeGenerator(play), model: 'fake' }))
describeGenerator('Pipeline', () => ({ generator: pipeline(), model: 'm' }))
