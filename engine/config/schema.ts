/**
 * The one schema of models.yaml. Keys are spelled as in the file, also in the parsed value. Every field has a
 * description: the JSON Schema and docs/configuration.md are generated from it.
 */
import { z } from 'zod'
import { address, anyDuration, duration, gigabytes, LONGEST_DURATION, positiveDuration, threads } from './values.js'

const NAME = /^[A-Za-z0-9][A-Za-z0-9._-]*$/

/** Names in URLs, headers and "model:rung": letters, digits, '.', '_', '-'. */
const name = () =>
  z.string().regex(NAME, 'expected letters, digits, ".", "_" or "-", starting with a letter or digit').max(64)

/** Containers, and quantization methods of safetensors. */
const FORMATS = ['gguf', 'safetensors', 'gptq', 'awq', 'fp8', 'compressed-tensors'] as const

const PRECISIONS = ['fp16', 'int8', 'int4'] as const
const precision = () => z.enum(PRECISIONS)

const kvCacheDtype = () => z.enum(['auto', 'fp16', 'fp8', 'int8'])

/** Rungs from best to worst. */
export const LADDER: readonly Precision[] = PRECISIONS

/** A rung's name. */
export type Precision = (typeof PRECISIONS)[number]

const server = z.strictObject({
  http: address()
    .prefault('127.0.0.1:8080')
    .describe('Address of HTTP and of the WebSocket chat (/v1/chat/ws). Port 0: any free port.'),
  grpc: address().prefault('127.0.0.1:8081').describe('Address of the public gRPC service. Port 0: any free port.'),
  engine_wait: anyDuration()
    .prefault('5s')
    .describe('How long a request waits for an engine that is being started or a rung that is being loaded.'),
  failover_wait: anyDuration()
    // Longer than `recover_after`: where a rung that is being spared is the only one, the request is what tries it again.
    .prefault('90s')
    .describe('How long a request that was lost in flight waits for its rung to come back.'),
  engine_timeout: positiveDuration()
    .prefault('30s')
    .describe(
      `An engine that does not answer a health check for this long is killed and started anew. At most ${LONGEST_DURATION}.`,
    ),
  engines: z
    .enum(['shared', 'per_device'])
    .default('shared')
    .describe(
      'Processes that drive the devices. shared: one for all, which places models on any of them. per_device: one for each device of the list, so that the end of one touches no stream of the others; each loads at its start what has it first in placement.devices, or its share of the models without placement, and anything else that it may on demand.',
    ),
  drain_timeout: duration()
    .prefault('30s')
    .describe(
      `How long requests in flight may go on after SIGTERM; then they end with shutting_down. At most ${LONGEST_DURATION}.`,
    ),
  resume_grace: duration()
    .prefault('30s')
    .describe(
      `How long a resumable stream whose client is gone goes on, and is kept after its end. At most ${LONGEST_DURATION}.`,
    ),
  cache_dir: z
    .string()
    .min(1)
    .optional()
    .describe(
      'Folder for repacked files, relative to this file: weights as a device keeps them, so that a rung that comes back need not be converted again. None are kept when absent.',
    ),
  cache_gb: gigabytes()
    .default(20)
    .describe('Bytes that cache_dir may take, in GB; the longest unused files go first.'),
  log_prompts: z.boolean().default(false).describe('Write the text of prompts to the log.'),
  api_keys_file: z
    .string()
    .min(1)
    .optional()
    .describe(
      'File of hashed API keys, relative to this file; edgeshift keys writes it. With it every request needs a key; without it only loopback addresses may be listened on.',
    ),
  tls_cert: z
    .string()
    .min(1)
    .optional()
    .describe(
      'Certificate chain in PEM form, relative to this file: HTTP, WebSocket and gRPC are served with TLS. Read again when it changes.',
    ),
  tls_key: z.string().min(1).optional().describe('Private key of tls_cert in PEM form, without a passphrase.'),
})

const swap = () =>
  gigabytes()
    .default(0)
    .describe(
      'Host memory beside memory_gb for the KV blocks of preempted sequences, which go on without being computed again. Page-locked for CUDA.',
    )

const cpuDevice = z.strictObject({
  id: name().describe('Name of the device in this file and in metrics.'),
  kind: z.literal('cpu').describe('cpu or cuda.'),
  memory_gb: gigabytes()
    .default(4)
    .describe('Memory for weights, KV cache and workspace together, in GB (10^9 bytes).'),
  threads: threads().prefault('auto').describe('Worker threads; auto: one for each core this process may use.'),
  swap_gb: swap(),
})

const cudaDevice = z.strictObject({
  id: name().describe('Name of the device in this file and in metrics.'),
  kind: z.literal('cuda').describe('cpu or cuda. Needs a build with CUDA: npm run build:cuda.'),
  index: z.int().min(0).max(63).default(0).describe('Index of the GPU as the driver counts them.'),
  memory_utilization: z.number().gt(0).max(1).default(0.92).describe("Share of the GPU's memory that may be used."),
  memory_gb: gigabytes().optional().describe('Cap in GB beside memory_utilization; the smaller one holds.'),
  host_cache_gb: gigabytes()
    .default(0)
    .describe('Page-locked host memory that keeps loaded weights, so that a model that comes back needs one copy.'),
  swap_gb: swap(),
})

const variant = z.strictObject({
  precision: precision()
    .optional()
    .describe(
      'The rung: fp16, int8 or int4, at most once in a ladder. With a path it may be absent: then it is the width that the files are stored in.',
    ),
  path: z
    .string()
    .min(1)
    .optional()
    .describe('A .gguf or .safetensors file or a model folder, relative to this file. A rung has either path or from.'),
  format: z
    .enum(FORMATS)
    .optional()
    .describe('How the files of the path store weights. Read from them; checked against them where it is stated.'),
  family: name().optional().describe('The architecture (llama, qwen2, ...). Read from the files; checked as format.'),
  from: precision().optional().describe('Derive this rung at load from the file of a better rung that has a path.'),
})

const placement = z.strictObject({
  devices: z
    .array(name())
    .min(1)
    .optional()
    .describe('Ids of the devices to use, in order of preference; all when absent.'),
  pin: z
    .boolean()
    .default(false)
    .describe('Never unload it, once loaded, to make room or because nobody asks; pinned models are loaded first.'),
  keep_alive: anyDuration().prefault('10m').describe('Unload a rung after this time without requests.'),
})

const policy = z.strictObject({
  prefer: z
    .enum(['highest_that_fits', 'resident', 'fastest'])
    .default('highest_that_fits')
    .describe(
      'Which rung is served when a request names none: the best that fits, loading it if need be; the best that is loaded now, and one that must be loaded only where none is; or the one with most tokens per second.',
    ),
  min_precision: precision()
    .optional()
    .describe(
      'The worst rung that may serve, also for requests that name a worse one; the last of the ladder when absent.',
    ),
  degrade_on: z
    .array(z.enum(['oom', 'failure', 'pressure', 'deadline']))
    .default(['oom', 'failure', 'pressure', 'deadline'])
    .describe('What moves a model down its ladder.'),
  max_failures: z.int().min(1).max(1000).default(3).describe('Failures in a row after which a rung is left.'),
  recover_after: anyDuration()
    .prefault('60s')
    .describe('Time of health before a move up, and until a rung that kept failing is tried again.'),
  min_dwell: anyDuration().prefault('120s').describe('Shortest time from a move to the next move up.'),
})

const model = z.strictObject({
  id: name().describe('Name clients use: "id" or "id:rung". Not "auto".'),
  tags: z.array(name()).default([]).describe('Other names for it; a tag belongs to one model.'),
  max_model_len: z
    .int()
    .min(1)
    .max(16_777_216)
    .optional()
    .describe("Longest prompt plus answer in tokens; the file's own limit when absent, and never above it."),
  kv_cache_dtype: kvCacheDtype()
    .optional()
    .describe("What this model's keys and values are cached as; the scheduler's kv_cache_dtype when absent."),
  variants: z.array(variant).min(1).max(LADDER.length).describe('The ladder, best precision first.'),
  placement: placement.prefault({}).describe('Where it may run.'),
  policy: policy.prefault({}).describe('How it moves on its ladder.'),
})

const scheduler = z.strictObject({
  block_size: z.int().min(8).max(256).multipleOf(8).default(16).describe('Tokens per KV block, a multiple of 8.'),
  max_num_seqs: z.int().min(1).max(4096).default(64).describe('Sequences that run at the same time, per loaded rung.'),
  max_num_batched_tokens: z
    .int()
    .min(1)
    .max(65_536)
    .default(512)
    .describe('Token budget of one step; longer prompts are prefilled in chunks. At least max_num_seqs.'),
  step_timeout: positiveDuration()
    .prefault('2m')
    .describe(
      `A step that makes no progress for this long counts as hung: the engine ends itself and is started anew. At most ${LONGEST_DURATION}.`,
    ),
  interactive_goal: anyDuration()
    .prefault('300ms')
    .describe(
      'An interactive request is to have its first token, and each next one, within this time: batch work beside it gets as much of the steps as that leaves; 0ms: no goal.',
    ),
  max_waiting: z.int().min(0).max(100_000).default(256).describe('Requests that may wait; more get 429.'),
  max_waiting_per_key: z
    .int()
    .min(1)
    .max(100_000)
    .optional()
    .describe('Of these, requests of one key and one priority; none when absent: a key may fill what others leave.'),
  enable_prefix_caching: z
    .boolean()
    .default(true)
    .describe('Keep the KV blocks of finished prompts and reuse them where a prompt starts the same way.'),
  kv_cache_dtype: kvCacheDtype()
    .default('auto')
    .describe(
      'What keys and values are cached as: fp16 (auto), or fp8 or int8 with a scale per token and head, in half the memory.',
    ),
})

/** The file's schema: strict, with defaults. Cross-field rules are in check.ts. */
export const configSchema = z.strictObject({
  server: server.prefault({}).describe('Where clients connect.'),
  devices: z
    .array(z.discriminatedUnion('kind', [cpuDevice, cudaDevice]))
    .min(1)
    .max(64)
    .default([])
    .describe('What models may run on. Absent: every GPU that is found (gpu0, gpu1, ...), else the CPU (cpu0).'),
  models: z.array(model).min(1).max(256).describe('What is served.'),
  scheduler: scheduler.prefault({}).describe('How requests share a device. Names and meanings as in vLLM.'),
})

/** models.yaml, parsed and with its defaults. */
export type ParsedConfig = z.output<typeof configSchema>

/** A device of the file. */
export type DeviceConfig = ParsedConfig['devices'][number]

/** The devices of a file that names none: each GPU of `found`, else the CPU, with the defaults of their keys. */
export function defaultDevices(found: readonly { kind: 'cpu' | 'cuda'; index: number }[]): DeviceConfig[] {
  const gpus = found.filter(({ kind }) => kind === 'cuda')
  if (gpus.length === 0) return [cpuDevice.parse({ id: 'cpu0', kind: 'cpu' })]
  return gpus.map(({ index }) => cudaDevice.parse({ id: `gpu${index}`, kind: 'cuda', index }))
}

/** Whether defaultDevices() may give a device this id. */
export function isDefaultDevice(id: string): boolean {
  return id === 'cpu0' || /^gpu(0|[1-9]\d?)$/.test(id)
}

/**
 * A rung whose file is known: `path` is absolute; `from` names the rung it is derived from, if any; an absent
 * `precision` is read from the file. `format` and `family` are what the file is said to be.
 */
export interface VariantConfig {
  precision?: Precision
  path: string
  from?: Precision
  format?: (typeof FORMATS)[number]
  family?: string
}

/** A model of the file with its rungs' files resolved. */
export type ModelConfig = Omit<ParsedConfig['models'][number], 'variants'> & { variants: VariantConfig[] }

/**
 * What the program works with. No `devices`: the file names none (defaultDevices). `digest`: SHA-256 of the file's text,
 * hexadecimal, by which gateway and engines know whether they have the same edit.
 */
export type Config = Omit<ParsedConfig, 'models'> & { models: ModelConfig[]; digest: string }
