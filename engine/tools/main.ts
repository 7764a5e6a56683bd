#!/usr/bin/env node
/** The commands that look at models without serving them. Run by the gateway's command line, in a process of its own. */
import { existsSync } from 'node:fs'
import { availableParallelism } from 'node:os'
import cliProgress from 'cli-progress'
import { Command, Option } from 'commander'
import { pino } from 'pino'
import { loadAddon } from '../addon.js'
import { type Config, ConfigError, defaultDevices, loadConfig, parseConfig } from '../config/index.js'
import { type GgufFile, KV_UNIT_BYTES, type NativeAddon, type NativeError, type Precision } from '../native.js'
import { type ModelCard, ModelFileError, readModelCard } from '../registry/index.js'
import { budgetOf, findDevices } from '../residency/open.js'
import { BenchError, benchCommand } from './bench-command.js'
import { hubAt, PullError } from './hub.js'
import { inspectCard, measureRounding } from './inspect.js'
import { formatInspection } from './inspect-text.js'
import { pullModel } from './pull.js'
import { formatBytes } from './units.js'
import { recordHashes, type Verification, verifyModel } from './verify.js'
import { formatVerification } from './verify-text.js'

const DEFAULT_CONFIG = 'models.yaml'
const RETRY_MS = 500

/** Settings where there is no configuration: its defaults. */
function defaultConfig(): Config {
  return parseConfig('models: [{ id: none, variants: [{ path: none }] }]', DEFAULT_CONFIG)
}

function configOf(file: string | undefined): Config {
  if (file !== undefined) return loadConfig(file)
  return existsSync(DEFAULT_CONFIG) ? loadConfig(DEFAULT_CONFIG) : defaultConfig()
}

interface InspectFlags {
  config?: string
  json?: boolean
  derive?: boolean
}

async function inspect(path: string, { config: file, json, derive }: InspectFlags): Promise<void> {
  const addon = loadAddon()
  const config = configOf(file)
  const devices = config.devices.length > 0 ? config.devices : defaultDevices(addon.devices())
  const found = findDevices(devices, addon, pino({ level: 'silent' }))
  const card = readModelCard(path, (gguf) => addon.readGguf(gguf))
  const report = inspectCard(card, { devices: found.map((device) => budgetOf(device)), scheduler: config.scheduler })
  if (derive) await measureRounding(report, (precision) => roundingError(addon, card, precision))
  console.log(json ? JSON.stringify(report, null, 2) : formatInspection(report))
}

/** What rounding takes of a rung, found by loading it on the CPU. */
async function roundingError(addon: NativeAddon, card: ModelCard, precision: Precision): Promise<number> {
  const { spec, files, weights } = card
  const device = addon.openDevice({
    kind: 'cpu',
    index: 0,
    kvArenaBytes: KV_UNIT_BYTES,
    threads: availableParallelism(),
  })
  try {
    const sizes = { maxSlots: 1, maxBatchTokens: 16, blockSize: 16 }
    const model = await device.loadModel({ spec, files, weights, precision, ...sizes })
    const error = model.roundingError
    await model.unload()
    return error
  } finally {
    await device.close()
  }
}

/** A bar on standard error where that is a terminal. */
function progressBar(): cliProgress.SingleBar {
  const format = ' {bar} {percentage}% | {doneText} of {totalText} | {what}'
  return new cliProgress.SingleBar(
    { format, hideCursor: true, clearOnComplete: true },
    cliProgress.Presets.shades_classic,
  )
}

/** Shows bytes on a bar while `work` runs. */
async function withBar<T>(
  work: (update: (done: number, total: number, what: string) => void) => Promise<T>,
): Promise<T> {
  const bar = progressBar()
  bar.start(1, 0, { doneText: '', totalText: '', what: '' })
  try {
    return await work((done, total, what) => {
      bar.setTotal(total)
      bar.update(done, { doneText: formatBytes(done), totalText: formatBytes(total), what })
    })
  } finally {
    bar.stop()
  }
}

const readGguf = (path: string): GgufFile => loadAddon().readGguf(path)

interface VerifyFlags {
  record?: boolean
  recordFile?: string
}

async function verify(path: string, { record, recordFile }: VerifyFlags): Promise<void> {
  const result = await withBar((update) =>
    verifyModel(path, readGguf, (done, total) => update(done, total, path), recordFile),
  )
  console.log(formatVerification(result))
  const faults = [...result.problems, ...(record ? [] : result.changes)]
  if (faults.length > 0) process.exitCode = 1
  else if (record) keepRecord(result)
}

function keepRecord(result: Verification): void {
  try {
    recordHashes(result)
    console.log(`recorded in ${result.recordFile}`)
  } catch (error) {
    const reason = error instanceof Error ? error.message : String(error)
    console.error(`cannot write the record: ${reason}; --record-file <file> keeps it elsewhere`)
    process.exitCode = 1
  }
}

interface PullFlags {
  endpoint?: string
  revision: string
  gguf?: string
  models: string
  maxGb: number
}

async function pull(name: string, { endpoint, revision, gguf, models, maxGb }: PullFlags): Promise<void> {
  const stop = new AbortController()
  for (const signal of ['SIGINT', 'SIGTERM'] as const) {
    process.once(signal, () => stop.abort(new PullError('stopped; the next pull goes on from here')))
  }
  const hub = hubAt(endpoint, process.env)
  const folder = await withBar((progress) =>
    pullModel({
      hub,
      name,
      revision,
      gguf,
      root: models,
      maxBytes: maxGb * 1e9,
      retryDelay: (attempt) => RETRY_MS * 2 ** attempt,
      progress,
      signal: stop.signal,
    }),
  )
  console.log(`${folder}: complete, every hash is right. edgeshift inspect ${folder} describes it`)
}

/** The addon's errors and the system's: both have a code and say what and where. */
function isNativeError(error: unknown): error is NativeError {
  return error instanceof Error && 'code' in error && typeof error.code === 'string'
}

/** One line for failures that a person can act on; anything else keeps its stack. */
function fail(error: unknown): void {
  const known =
    error instanceof ModelFileError ||
    error instanceof ConfigError ||
    error instanceof PullError ||
    error instanceof BenchError ||
    isNativeError(error)
  console.error(known ? error.message : error)
  process.exitCode = 1
}

function positive(text: string): number {
  const value = Number(text)
  if (!(value > 0)) throw new PullError(`--max-gb: expected a number above 0, found ${JSON.stringify(text)}`)
  return value
}

const program = new Command('edgeshift').description('Look at models without serving them')
program
  .command('inspect <path>')
  .description('describe a model file or folder from its headers')
  .option('--config <file>', 'configuration whose devices are tried (default: models.yaml, where there is one)')
  .option('--json', 'print JSON')
  .option('--derive', 'load the quantized rungs in turn on the CPU and state what rounding takes')
  .action(inspect)
program
  .command('verify <path>')
  .description('check hashes and that every value is finite')
  .option('--record', 'write the hashes down beside the model, for the next verify to compare with')
  .option('--record-file <file>', 'where the record is kept (default: SHA256SUMS in the folder, or NAME.gguf.sha256)')
  .action(verify)
program
  .command('pull <name>')
  .description('download a model (owner/name) from a hub into the models folder')
  .option('--endpoint <url>', 'base URL of the hub (default: HF_ENDPOINT, or the public hub)')
  .option('--revision <revision>', 'branch, tag or commit', 'main')
  .option('--gguf <part>', 'take the .gguf with this in its name instead of the safetensors')
  .option('--models <folder>', 'folder that models lie in', 'models')
  .addOption(new Option('--max-gb <size>', 'most GB that the model may have').argParser(positive).default(100))
  .action(pull)
program.addCommand(benchCommand())
program.parseAsync().catch(fail)
