/** `edgeshift bench` on a tiny shape: every figure it says it takes, on the CPU. */
import { execFile } from 'node:child_process'
import { fileURLToPath } from 'node:url'
import { promisify } from 'node:util'
import { expect, test } from 'vitest'
import { z } from 'zod'

const run = promisify(execFile)
const tools = fileURLToPath(new URL('../../engine/tools/main.ts', import.meta.url))
const SMALL = ['--shape', 'stories-tiny', '--device', 'cpu', '--batch', '1,3', '--prompt', '40', '--steps', '4']

/** What the command prints with these options. */
async function bench(...options: string[]): Promise<string> {
  const { stdout } = await run(process.execPath, [
    '--import',
    'tsx',
    tools,
    'bench',
    ...SMALL,
    '--repeat',
    '2',
    ...options,
  ])
  return stdout
}

const row = z.object({
  through: z.literal('native'),
  phase: z.string(),
  batch: z.number(),
  tokens: z.number(),
  rate: z.number(),
  low: z.number(),
  high: z.number(),
  milliseconds: z.number().positive(),
  bytes: z.number(),
  share: z.number(),
})
const output = z.object({
  model: z.string(),
  precision: z.string(),
  repeat: z.literal(2),
  warmUp: z.literal(1),
  readBandwidth: z.number(),
  weightBytes: z.number(),
  workspaceBytes: z.number().positive(),
  rows: z.array(row),
})

test.each(['fp16', 'int8', 'int4'])(
  'JSON at %s: load, prefill and decode, each rate within its spread',
  async (precision) => {
    const report = output.parse(JSON.parse(await bench('--precision', precision, '--json')))
    const { model, precision: rung, rows, readBandwidth } = report
    expect([model, rung]).toEqual(['stories-tiny', precision])
    expect(rows.map(({ phase, batch, tokens }) => [phase, batch, tokens])).toEqual([
      ['load', 0, 0],
      ['prefill', 1, 40],
      ['decode', 1, 4],
      ['decode', 3, 12],
    ])
    for (const { rate, low, high } of rows.slice(1)) expect(low <= rate && rate <= high && low > 0).toBe(true)
    const [load, , one, three] = rows
    expect(load?.bytes).toBeGreaterThan(100_000)
    expect(load?.bytes).toBe(report.weightBytes)
    // No machine's memory is slower, and a step of so small a model takes longer than its bytes.
    expect(readBandwidth).toBeGreaterThan(1e8)
    for (const { bytes, milliseconds, share } of [one, three].filter((found) => found !== undefined)) {
      expect(share).toBeCloseTo(bytes / (milliseconds / 1000) / readBandwidth, 6)
      expect(share).toBeGreaterThan(0)
    }
    // Three sequences read the same weights and three times the cache.
    expect(three?.bytes).toBeGreaterThan(one?.bytes ?? Infinity)
  },
  60_000,
)

test('the table names every figure with its unit, its spread and its share of the limit', async () => {
  const text = await bench()
  for (const line of [
    /^stories-tiny at int4 on cpu:0; native: .*, stack: .*$/m,
    /^after 1 run to warm up the median of 2, with the least and the most$/m,
    /^native load +[\d.]+ ms, [\d.]+ \w+ of weights$/m,
    /^native prefill +batch 1 +[\d.]+ ms, 40 tokens, \d+ tok\/s \(\d+ \.\. \d+\)$/m,
    /^native decode +batch 3 +[\d.]+ ms, \d+ tok\/s \(\d+ \.\. \d+\), [\d.]+ [GT]B\/s, \d+% of the limit$/m,
    /^read bandwidth [\d.]+ [GT]B\/s; resident: [\d.]+ \w+ of weights, [\d.]+ \w+ of workspace$/m,
  ])
    expect(text).toMatch(line)
}, 60_000)

test('CSV has a header and a line for each figure; a wrong option is one line', async () => {
  const lines = (await bench('--csv')).trim().split('\n')
  expect(lines[0]).toBe('through,phase,batch,tokens,rate,low,high,milliseconds,bytes,share')
  expect(lines).toHaveLength(5)
  await expect(bench('--batch', '0')).rejects.toThrow('expected a whole number above 0, found "0"')
}, 60_000)
