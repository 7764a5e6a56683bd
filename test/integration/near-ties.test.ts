/**
 * Greedy texts of the embedded model alone and among others in the same steps. The kernels that serve a batch of one sum
 * in another order than those of a large one: texts may differ from a place on where two tokens are as good as equally
 * likely, and nowhere else. Those places are counted.
 */
import { readFileSync } from 'node:fs'
import { expect, test } from 'vitest'
import { loadAddon } from '../../engine/addon.js'
import type { NativeModel } from '../../engine/native.js'
import {
  generate,
  generateTogether,
  greedyState,
  makeBatch,
  smollm2Request,
  testDevices,
} from '../support/native-model.js'
import { NEAR_TIE } from '../support/near-ties.js'

/** More than one sequence of native-model.ts takes of the arena. */
const SEQUENCE_BYTES = 110e6
const SIZES = { cpu: { streams: 6, tokens: 16 }, cuda: { streams: 64, tokens: 64 } }
/** On a CPU results do not depend on the batch: one rung stands for all. */
const CASES = testDevices()
  .filter(({ missing }) => !missing)
  .flatMap((on) =>
    (on.options.kind === 'cuda' ? (['fp16', 'int8', 'int4'] as const) : (['int4'] as const)).map((precision) => ({
      on,
      precision,
    })),
  )

const texts = readFileSync(new URL('../fixtures/smollm2/greedy.jsonl', import.meta.url), 'utf8')
  .trim()
  .split('\n')
  .map((line) => (JSON.parse(line) as { prompt_ids: number[] }).prompt_ids)

/** So many prompts, no two alike. */
const promptsOf = (count: number): number[][] =>
  Array.from({ length: count }, (_, i) => [...(texts[i % texts.length] ?? []).slice(0, 24), 1000 + 97 * i])

/** How far apart the two most likely tokens after a text are. */
async function margin(model: NativeModel, tokens: readonly number[]): Promise<number> {
  model.setSlot(0, greedyState(tokens))
  const rows = [{ at: tokens.length - 1, target: 0, top: 2 }]
  const { topLogprobs } = await model.step(makeBatch(model, [{ slot: 0, first: 0, tokens, rows }]))
  return (topLogprobs[0] ?? Number.NaN) - (topLogprobs[1] ?? Number.NaN)
}

test.each(CASES)(
  'texts of the $precision rung alone and among others on $on.name differ at near ties only',
  async ({ on: { options }, precision }) => {
    const { streams, tokens } = SIZES[options.kind]
    const device = loadAddon().openDevice({ ...options, kvArenaBytes: streams * SEQUENCE_BYTES })
    const model = await device.loadModel({ ...smollm2Request(precision, 2048), maxSlots: streams })
    const prompts = promptsOf(streams)
    const together = await generateTogether(model, prompts, tokens)
    const ties: string[] = []
    for (const [i, prompt] of prompts.entries()) {
      // oxlint-disable-next-line no-await-in-loop -- alone
      const alone = await generate(model, prompt, tokens)
      expect(new Set(alone).size).toBeGreaterThan(1)
      const at = alone.findIndex((token, place) => token !== together[i]?.[place])
      if (at < 0) continue
      // oxlint-disable-next-line no-await-in-loop -- the same
      const apart = await margin(model, [...prompt, ...alone.slice(0, at)])
      ties.push(`stream ${i}, token ${at}: ${apart.toFixed(4)}`)
      expect(apart).toBeLessThan(NEAR_TIE)
    }
    console.log(
      `${options.kind}, ${precision}: ${ties.length} of ${streams} texts of ${tokens} tokens differ at a near tie; ${ties.join('; ')}`,
    )
    await model.unload()
    await device.close()
  },
  120_000,
)
