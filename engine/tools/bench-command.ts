/** `edgeshift bench`: options in, figures out. */
import { mkdtempSync, rmSync } from 'node:fs'
import { availableParallelism, tmpdir } from 'node:os'
import { join } from 'node:path'
import { Command, Option } from 'commander'
import { loadAddon } from '../addon.js'
import { LADDER } from '../config/index.js'
import type { Precision } from '../native.js'
import { readModelCard } from '../registry/index.js'
import { type BenchPlan, type BenchRow, benchModel } from './bench.js'
import { benchHttp } from './bench-http.js'
import { formatCsv, formatDevice, formatHead, formatRow } from './bench-report.js'
import { SHAPES, writeRandomCheckpoint } from './random-checkpoint.js'

/** An option that makes no sense. */
export class BenchError extends Error {}

interface BenchFlags {
  shape: string
  model?: string
  precision?: Precision
  device?: string
  batch: number[]
  prompt: number[]
  context: number
  steps: number
  repeat: number
  http?: boolean
  cli?: string
  json?: boolean
  csv?: boolean
}

/** The device that a flag like cuda:1 or cpu names; without one a GPU where there is one. */
function benchDevice(name: string | undefined): BenchPlan['device'] {
  const threads = availableParallelism()
  const [kind, index = '0'] = (name ?? '').split(':')
  if (kind === 'cpu' || kind === 'cuda') return { kind, index: Number(index), threads }
  if (name !== undefined) throw new BenchError(`--device: expected cpu or cuda:N, found ${JSON.stringify(name)}`)
  const gpu = loadAddon()
    .devices()
    .some((info) => info.kind === 'cuda')
  return { kind: gpu ? 'cuda' : 'cpu', index: 0, threads }
}

async function bench(flags: BenchFlags): Promise<void> {
  const { shape: name, model, batch: batches, prompt: prompts, context, steps, repeat } = flags
  if (flags.http && flags.cli === undefined) throw new BenchError('--http needs --cli: what serves')
  const plan: BenchPlan = { device: benchDevice(flags.device), batches, prompts, context, steps, repeat }
  const scratch = model === undefined ? mkdtempSync(join(tmpdir(), 'edgeshift-bench-')) : undefined
  const path = model ?? join(scratch ?? '', name)
  try {
    const shape = SHAPES[name]
    if (model === undefined && shape !== undefined) writeRandomCheckpoint(path, shape, flags.precision ?? 'int4')
    const card = readModelCard(path, (file) => loadAddon().readGguf(file))
    const precision = flags.precision ?? card.precision
    const rows: BenchRow[] = []
    const say = (line: string): void => {
      if (!flags.json && !flags.csv) console.log(line)
    }
    const report = (row: BenchRow): void => {
      rows.push(row)
      say(formatRow(row))
    }
    say(formatHead(`${model ?? name} at ${precision}`, plan))
    const measured = await benchModel(loadAddon(), card, precision, plan, report)
    say(formatDevice(measured))
    if (flags.http && flags.cli !== undefined) {
      const args = flags.cli.endsWith('.ts') ? ['--import', import.meta.resolve('tsx'), flags.cli] : [flags.cli]
      const bytes = rows.find(({ phase, batch }) => phase === 'decode' && batch === 1)?.bytes ?? measured.weightBytes
      const reads = { bytes, bandwidth: measured.readBandwidth }
      await benchHttp({ command: process.execPath, args }, path, precision, plan, reads, report)
    }
    const head = { model: model ?? name, precision, device: plan.device, repeat, warmUp: 1, ...measured }
    if (flags.json) console.log(JSON.stringify({ ...head, rows }, null, 2))
    if (flags.csv) console.log(formatCsv(rows))
  } finally {
    if (scratch !== undefined) rmSync(scratch, { recursive: true, force: true })
  }
}

/** A list of whole numbers above 0, like 1,4,16. */
const counts = (text: string): number[] => text.split(',').map(count)

function count(text: string): number {
  const value = Number(text)
  if (!Number.isSafeInteger(value) || value < 1)
    throw new BenchError(`expected a whole number above 0, found ${JSON.stringify(text)}`)
  return value
}

/** The command with its options. */
export function benchCommand(): Command {
  return new Command('bench')
    .description('measure load, prefill and decode of a model, or of a named shape with random weights')
    .addOption(
      new Option('--shape <name>', 'shape to fill with random weights')
        .choices(Object.keys(SHAPES))
        .default('smollm2-135m'),
    )
    .option('--model <path>', 'model file or folder to measure instead')
    .addOption(
      new Option('--precision <rung>', 'fp16, int8 or int4 (default: int4, or the width of the files)').choices(LADDER),
    )
    .option('--device <device>', 'cpu or cuda:N (default: cuda:0 where there is one)')
    .addOption(
      new Option('--batch <sizes>', 'sequences that decode together').argParser(counts).default([1, 4, 16, 64]),
    )
    .addOption(new Option('--prompt <lengths>', 'prompts to prefill').argParser(counts).default([512, 2048]))
    .addOption(new Option('--context <tokens>', 'tokens before the first decode step').argParser(count).default(128))
    .addOption(new Option('--steps <count>', 'decode steps of a run').argParser(count).default(64))
    .addOption(new Option('--repeat <count>', 'runs of each figure, after one to warm up').argParser(count).default(3))
    .option('--http', 'also stream through a gateway and an engine of its own, one request at a time')
    .addOption(new Option('--cli <file>', 'command line to serve with').hideHelp())
    .option('--json', 'print JSON')
    .option('--csv', 'print comma-separated values')
    .action(bench)
}
