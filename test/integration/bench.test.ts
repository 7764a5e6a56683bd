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
  through: z.literal('addon'),
  phase: z.string(),
  batch: z.number(),
  tokens: z.number(),
  rate: z.number(),
  low: z.number(),
  high: z.number(),
  milliseconds: z.number().positive(),
  bytes: z.number(),
})
const output = z.object({ model: z.string(), precision: z.string(), rows: z.array(row) })

test.each(['fp16', 'int8', 'int4'])(
  'JSON at %s: load, prefill and decode, each rate within its spread',
  async (precision) => {
    const { model, precision: rung, rows } = output.parse(JSON.parse(await bench('--precision', precision, '--json')))
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
    // Three sequences read the same weights and three times the cache.
    expect(three?.bytes).toBeGreaterThan(one?.bytes ?? Infinity)
  },
  60_000,
)

test('CSV has a header and a line for each figure; a wrong option is one line', async () => {
  const lines = (await bench('--csv')).trim().split('\n')
  expect(lines[0]).toBe('through,phase,batch,tokens,rate,low,high,milliseconds,bytes')
  expect(lines).toHaveLength(5)
  await expect(bench('--batch', '0')).rejects.toThrow('expected a whole number above 0, found "0"')
}, 60_000)
