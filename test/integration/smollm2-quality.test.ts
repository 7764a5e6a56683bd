/** The embedded model through the whole HTTP stack against the reference figures. The full run: npm run bench:quality. */
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { GatewayProcess } from '../support/gateway-process.js'
import { compareGreedy, greedyRows, perplexity } from '../support/quality.js'

let box: GatewayProcess

beforeAll(async () => {
  box = await GatewayProcess.startShipped().ready()
})
afterAll(() => box.close())

describe('greedy continuations', () => {
  // The reference is float32; a rung may leave it only where the reference itself nearly ties.
  it.each([
    ['fp16', 0.05],
    ['int8', 0.05],
    ['int4', 0.05],
  ])('%s leaves the reference only at margins below %d', async (rung, tie) => {
    // The long prompts (index 9 to 13) are left to the full run.
    const rows = greedyRows().filter(({ prompt_ids }) => prompt_ids.length <= 100)
    const results = await Promise.all(rows.map((row) => compareGreedy(box.url, `smollm2:${rung}`, row)))
    expect(results.filter(({ margin }) => (margin ?? 0) >= tie)).toEqual([])
  })
})

describe('perplexity of the first window of WikiText-2', () => {
  it.each([
    ['fp16', 0.005],
    ['int8', 0.005],
    ['int4', 0.005],
  ])(
    '%s is within %d of the reference',
    async (rung, tolerance) => {
      const { measured, reference } = await perplexity(box.url, `smollm2:${rung}`, 1)
      expect(Math.abs(measured / reference - 1)).toBeLessThan(tolerance)
    },
    60_000,
  )
})
