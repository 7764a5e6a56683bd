// A runnable engine without a model: `node --import tsx scripted-engine.ts --config FILE --socket PATH`.
// Every sequence gets the token ids of TOKENS (default: a few words), one a step, a step every STEP_MS (default 0: as
// fast as its reader takes them). Assets are the models' own.
// FAIL=TEXT: it fails at its start.
import { unlinkSync } from 'node:fs'
import { parseArgs } from 'node:util'
import { Server, ServerCredentials, type ServerDuplexStream } from '@grpc/grpc-js'
import { loadConfig } from '../../engine/config/index.js'
import { readCatalog } from '../../engine/residency/catalog.js'
import {
  EngineService,
  FinishReason,
  VariantState,
  type EngineServer,
  type EngineStatus,
  type SequenceDelta,
  type SessionEvent,
  type SessionRequest,
  type Submit,
} from '../../proto/gen/edgeshift/v1/engine.js'
import { readGgufInTypeScript } from './read-gguf.js'

const { values } = parseArgs({ options: { config: { type: 'string' }, socket: { type: 'string' } } })
if (process.env.FAIL) throw new Error(process.env.FAIL)
const config = loadConfig(values.config ?? 'models.yaml')
const stepMs = Number(process.env.STEP_MS ?? 0)
const tokens = (process.env.TOKENS ?? '504 338 253 1028').split(' ').map(Number)
const catalog = readCatalog(config, readGgufInTypeScript)

const status: EngineStatus = {
  engineVersion: 'scripted',
  running: 0,
  waiting: 0,
  maxWaiting: 256,
  devices: [],
  variants: config.models.flatMap(({ id, variants }) =>
    variants.map(({ precision }) => ({
      ...{ name: `${id}:${precision}`, model: id, precision, device: 'cpu0', error: '' },
      ...{ weightBytes: 1000, maxModelLen: 8192, vocabSize: 49152, state: VariantState.READY },
      ...{ running: 0, waiting: 0, blockBytes: 0 },
    })),
  ),
}

/** One sequence's place in the script. */
interface Playing {
  submit: Submit
  sent: number
  paused: boolean
}

function play(call: ServerDuplexStream<SessionRequest, SessionEvent>): void {
  const playing = new Map<number, Playing>()
  let scheduled = false
  let blocked = false
  const schedule = (): void => {
    if (scheduled || blocked || playing.size === 0) return
    scheduled = true
    if (stepMs > 0) setTimeout(step, stepMs)
    else setImmediate(step)
  }
  const step = (): void => {
    scheduled = false
    const deltas: SequenceDelta[] = []
    for (const [id, sequence] of playing) {
      if (sequence.paused) continue
      const first = sequence.sent === 0
      const token = tokens[sequence.sent++ % tokens.length] as number
      const done = sequence.sent >= sequence.submit.maxTokens
      deltas.push({
        sequenceId: id,
        tokens: [token],
        logprobs: [],
        promptLogprobs: [],
        finishReason: done ? FinishReason.LENGTH : FinishReason.UNSPECIFIED,
        start: first ? { cachedTokens: 0, queueUs: 0 } : undefined,
      })
      if (done) playing.delete(id)
    }
    if (deltas.length > 0) blocked = !call.write({ kind: { $case: 'step', step: { deltas } } })
    if (deltas.length > 0) schedule()
  }
  call.on('drain', () => {
    blocked = false
    schedule()
  })
  call.on('data', ({ kind }: SessionRequest) => {
    if (kind?.$case === 'submit') playing.set(kind.submit.sequenceId, { submit: kind.submit, sent: 0, paused: false })
    else if (kind?.$case === 'cancel') playing.delete(kind.cancel.sequenceId)
    else if (kind?.$case === 'flow') {
      const sequence = playing.get(kind.flow.sequenceId)
      if (sequence) sequence.paused = kind.flow.paused
    }
    schedule()
  })
  const stop = (): void => playing.clear()
  call.on('end', () => (stop(), call.end()))
  call.on('error', stop).on('cancelled', stop)
  call.write({ kind: { $case: 'status', status } })
}

const server = new Server()
const handlers: EngineServer = {
  session: play,
  describe: (_call, reply) => reply(null, { status, devices: [] }),
  getModelAssets: (call) => {
    for (const asset of catalog.assets.get(call.request.model) ?? [])
      call.write({ name: asset.name, data: Buffer.from(asset.data) })
    call.end()
  },
}
server.addService(EngineService, handlers)
const socket = values.socket ?? ''
server.bindAsync(`unix:${socket}`, ServerCredentials.createInsecure(), (error) => {
  if (error) throw error
})

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
