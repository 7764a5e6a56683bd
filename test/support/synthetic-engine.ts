/**
 * An engine process without a model, for benchmarks of everything around it: the real scheduler and gRPC service over
 * an executor that emits tokens at a set rate. Run as
 *   node --import tsx test/support/synthetic-engine.ts --config models.yaml --socket PATH [--rate N] [--length N]
 * It serves the rungs that the configuration names, with a byte-level tokenizer and a ChatML template of its own.
 */
import { Command } from 'commander'
import { pino } from 'pino'
import { FinishReason, VariantState } from '../../proto/gen/edgeshift/v1/engine.js'
import { loadConfig } from '../../engine/config/index.js'
import { EngineDevice } from '../../engine/device.js'
import { Engine } from '../../engine/engine.js'
import { KvArena } from '../../engine/kv/arena.js'
import { MemoryLedger } from '../../engine/residency/ledger.js'
import { watchParent } from '../../engine/server/lifecycle.js'
import { listen } from '../../engine/server/listen.js'
import { EngineService } from '../../engine/server/service.js'
import { SyntheticExecutor } from './synthetic-executor.js'
import { tinyTokenizerAssets, TINY_STOP_TOKEN, TINY_VOCAB_SIZE, tinyTokens } from './tiny-tokenizer.js'

const BLOCK_BYTES = 256
const BLOCKS = 1 << 16
const SLAB_BLOCKS = 256
const MAX_MODEL_LEN = 8192

const args = new Command('synthetic-engine')
  .requiredOption('--config <file>')
  .requiredOption('--socket <path>')
  .option('--last-good <file>')
  .option('--rate <tokens>', 'tokens per second of every stream, 0 = unlimited', '0')
  .option('--length <tokens>', 'tokens after which an answer stops by itself, 0 = never', '0')
  .parse()
  .opts<{ config: string; socket: string; rate: string; length: string }>()

const log = pino({ name: 'synthetic-engine', level: 'info' }, pino.destination(2))
const clock = (): number => performance.now()
const config = loadConfig(args.config)
const { scheduler } = config
const { max_waiting: maxWaiting, max_waiting_per_key: maxWaitingPerTenant } = scheduler
const engine = new Engine({ version: 'synthetic', maxWaiting, maxWaitingPerTenant, clock, log })
engine.configDigest = config.digest
const events = {
  deviceFailed: (): never => process.exit(70),
  sequenceFinished: engine.sequenceFinished,
}
const description = { id: 'cpu0', kind: 'cpu' as const, name: 'synthetic' }
const arena = new KvArena(BLOCKS * BLOCK_BYTES, SLAB_BLOCKS * BLOCK_BYTES)
const stepTimeoutMs = config.scheduler.step_timeout
const deviceOptions = { clock, log, events, depth: 1, stepTimeoutMs, interactiveGoalMs: 0 }
const device = new EngineDevice(description, new MemoryLedger(1e9), arena, deviceOptions)
engine.devices.push(device)

for (const model of config.models) {
  for (const { precision = 'int4' } of model.variants) {
    const executor = new SyntheticExecutor({
      rate: Number(args.rate),
      tokens: tinyTokens('The quick brown fox jumps over the lazy dog. '),
      stopToken: TINY_STOP_TOKEN,
      length: Number(args.length),
    })
    const maxModelLen = Math.min(model.max_model_len ?? MAX_MODEL_LEN, MAX_MODEL_LEN)
    engine.variants.set(`${model.id}:${precision}`, {
      name: `${model.id}:${precision}`,
      model: model.id,
      precision,
      device: description.id,
      maxModelLen,
      vocabSize: TINY_VOCAB_SIZE,
      state: VariantState.READY,
      error: '',
      weightBytes: 0,
      roundingError: 0,
      neededBytes: 0,
      pinned: false,
      loads: 1,
      origin: 'files',
      loadMs: 0,
      resident: device.addVariant(executor, BLOCK_BYTES, {
        maxNumSeqs: scheduler.max_num_seqs,
        maxBatchTokens: scheduler.max_num_batched_tokens,
        blockSize: scheduler.block_size,
        maxModelLen,
        prefixCaching: scheduler.enable_prefix_caching,
      }),
    })
  }
}

const assets = tinyTokenizerAssets(MAX_MODEL_LEN)
const models = new Set(config.models.map(({ id }) => id))
const service = new EngineService(engine, async (model) => (models.has(model) ? assets : undefined), log)
const listener = await listen(args.socket, service.handlers)
const exit = async (): Promise<void> => {
  await engine.stop(FinishReason.CANCELLED)
  service.close()
  await listener.close()
  process.exit(0)
}
process.once('SIGTERM', () => void exit())
watchParent(() => void exit())
