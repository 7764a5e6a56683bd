// A runnable engine without a model: `node --import tsx scripted-engine.ts --config FILE --socket PATH`.
// Every sequence gets the bytes of a sentence as tokens, one a step: the first at once, the others STEP_MS apart
// (default 0: as fast as its reader takes them).
// FAIL=TEXT: it fails at its start. POISON=TEXT: a prompt that holds the text kills it, by
// POISON_SIGNAL (default: SIGABRT).
// HOLD=FILE: it does not start while the file is there.
// HOLD_DESCRIBE=FILE: it does not describe itself while the file is there.
// FAIL_STEP=step: the step that would give a sequence its sixth token fails, unless it is a replay; FAIL_STEP=device: the
// device is lost with it, so the process ends.
import { existsSync, unlinkSync } from 'node:fs'
import { parseArgs } from 'node:util'
import { Server, ServerCredentials, type ServerDuplexStream, status as grpcStatus } from '@grpc/grpc-js'
import { loadConfig } from '../../engine/config/index.js'
import {
  EngineService,
  FinishReason,
  VariantState,
  type Command,
  type EngineServer,
  type EngineStatus,
  type SequenceDelta,
  type SessionEvent,
  type SessionRequest,
  type Submit,
} from '../../proto/gen/edgeshift/v1/engine.js'
import { TINY_VOCAB_SIZE, tinyTokenizerAssets, tinyTokens } from './tiny-tokenizer.js'

const { values } = parseArgs({
  options: { config: { type: 'string' }, socket: { type: 'string' }, 'last-good': { type: 'string' } },
})
if (process.env.FAIL) throw new Error(process.env.FAIL)
await gone(process.env.HOLD)
const MAX_MODEL_LEN = 8192
const UNSUPPORTED = { code: grpcStatus.UNIMPLEMENTED, details: 'scripted' }
const config = loadConfig(values.config ?? 'models.yaml')
const stepMs = Number(process.env.STEP_MS ?? 0)
const tokens = tinyTokens('The quick brown fox. ')
const poison = tinyTokens(process.env.POISON ?? '').join()
const poisonSignal = process.env.POISON_SIGNAL ?? 'SIGABRT'
const assets = tinyTokenizerAssets(MAX_MODEL_LEN)

const status: EngineStatus = {
  engineVersion: 'scripted',
  running: 0,
  waiting: 0,
  maxWaiting: 256,
  devices: [],
  configError: '',
  configWaiting: [],
  configDigest: config.digest,
  variants: config.models.flatMap(({ id, variants }) =>
    variants.map(({ precision = 'int4' }) => ({
      name: `${id}:${precision}`,
      model: id,
      precision,
      device: 'cpu0',
      error: '',
      weightBytes: 1000,
      maxModelLen: MAX_MODEL_LEN,
      vocabSize: TINY_VOCAB_SIZE,
      state: VariantState.READY,
      running: 0,
      waiting: 0,
      blockBytes: 0,
      loadable: false,
      neededBytes: 1000,
      pinned: false,
      loads: 1,
      origin: 'files',
      loadMs: 0,
      queueable: false,
      room: [],
    })),
  ),
}

/** One sequence's place in the script. */
interface Playing {
  id: number
  /** Tokens of the sentence at which it ends; replayed ones count. */
  until: number
  sent: number
  replayed: number
  started: boolean
  paused: boolean
}

type Call = ServerDuplexStream<SessionRequest, SessionEvent>

/** One session: new sequences get their first token at once, all others one at every step. */
class Player {
  private readonly playing = new Map<number, Playing>()
  private fresh: Playing[] = []
  private timer: NodeJS.Timeout | undefined
  private stepping = false
  private blocked = false

  constructor(private readonly call: Call) {
    call.on('data', ({ commands }: SessionRequest) => commands.forEach((command) => this.take(command)))
    call.on('drain', () => {
      this.blocked = false
      this.schedule()
    })
    call.on('end', () => (this.stop(), call.end()))
    call.on('error', () => this.stop()).on('cancelled', () => this.stop())
    if (stepMs > 0) this.timer = setInterval(() => this.step(), stepMs)
    call.write({ kind: { $case: 'status', status } })
  }

  private take({ kind }: Command): void {
    if (kind?.$case === 'submit') this.fresh.push(playingOf(kind.submit))
    else if (kind?.$case === 'cancel') this.playing.delete(kind.cancel.sequenceId)
    else if (kind?.$case === 'flow') {
      const { sequenceId } = kind.flow
      const sequence = this.playing.get(sequenceId) ?? this.fresh.find(({ id }) => id === sequenceId)
      if (sequence) sequence.paused = kind.flow.paused
    }
    this.schedule()
  }

  /** Once in this turn of the loop: what arrives together goes into one step. */
  private schedule(): void {
    if (this.stepping) return
    this.stepping = true
    setImmediate(() => {
      this.stepping = false
      const { fresh } = this
      this.fresh = []
      for (const sequence of fresh) this.playing.set(sequence.id, sequence)
      if (stepMs === 0) this.step()
      else this.write(fresh.filter(({ paused }) => !paused))
    })
  }

  private step(): void {
    const running = [...this.playing.values()].filter(({ paused }) => !paused)
    this.write(running)
    if (stepMs === 0 && running.length > 0 && !this.blocked) this.schedule()
  }

  private write(sequences: readonly Playing[]): void {
    if (sequences.length === 0 || this.blocked) return
    const deltas = sequences.map((sequence) => this.next(sequence))
    this.blocked = !this.call.write({ kind: { $case: 'step', step: { deltas } } })
  }

  private next(sequence: Playing): SequenceDelta {
    if (process.env.FAIL_STEP && sequence.replayed === 0 && sequence.sent === 5) return this.fail(sequence)
    const start = sequence.started ? undefined : { cachedTokens: 0, queueUs: 0 }
    sequence.started = true
    const token = tokens[sequence.sent++ % tokens.length] ?? 0
    const done = sequence.sent >= sequence.until
    if (done) this.playing.delete(sequence.id)
    const finishReason = done ? FinishReason.LENGTH : FinishReason.UNSPECIFIED
    return { sequenceId: sequence.id, tokens: [token], logprobs: [], promptLogprobs: [], finishReason, start }
  }

  private fail({ id }: Playing): SequenceDelta {
    this.playing.delete(id)
    if (process.env.FAIL_STEP === 'device') {
      setImmediate(() => {
        this.call.end()
        setTimeout(() => process.exit(70), 50)
      })
    }
    const error = { code: 'engine_failed', message: 'the engine failed in this step', retryAfterMs: 0 }
    const none = { tokens: [], logprobs: [], promptLogprobs: [] }
    return { sequenceId: id, ...none, finishReason: FinishReason.ERROR, error }
  }

  private stop(): void {
    clearInterval(this.timer)
    this.playing.clear()
    this.fresh = []
  }
}

function playingOf({ sequenceId, maxTokens, replayedTokens, prompt }: Submit): Playing {
  if (poison !== '' && prompt.join().includes(poison)) process.kill(process.pid, poisonSignal)
  const until = replayedTokens + maxTokens
  return { id: sequenceId, until, sent: replayedTokens, replayed: replayedTokens, started: false, paused: false }
}

const server = new Server()
const handlers: EngineServer = {
  session: (call) => void new Player(call),
  load: (_call, reply) => reply(UNSUPPORTED),
  unload: (_call, reply) => reply(UNSUPPORTED),
  pin: (_call, reply) => reply(UNSUPPORTED),
  describe: (_call, reply) => void gone(process.env.HOLD_DESCRIBE).then(() => reply(null, { status, devices: [] })),
  getModelAssets: (call) => {
    for (const { name, data } of assets) call.write({ name, data: Buffer.from(data) })
    call.end()
  },
}
server.addService(EngineService, handlers)
const socket = values.socket ?? ''
server.bindAsync(`unix:${socket}`, ServerCredentials.createInsecure(), (error) => {
  if (error) throw error
})

async function gone(file = ''): Promise<void> {
  while (existsSync(file)) await new Promise((resolve) => setTimeout(resolve, 10))
}

function exit(): void {
  try {
    unlinkSync(socket)
  } catch {
    // Removed already.
  }
  process.exit(0)
}
process.stdin.on('end', exit).resume()
process.on('SIGTERM', exit)
