/** Checkpoints of test/fixtures/formats, written by the tools of their formats, with their expected logits. */
import { existsSync, readdirSync, readFileSync } from 'node:fs'
import { fileURLToPath } from 'node:url'
import type { LoadRequest, NativeModel, Precision } from '../../engine/native.js'
import type { DecoderSpec } from '../../engine/registry/decoder-spec.js'
import { type ModelCard, promptRopes, readModelCard } from '../../engine/registry/index.js'
import { BLOCK_SIZE, scoreNext, standardDeviation } from './native-model.js'
import { readNpz } from './npz.js'

const root = fileURLToPath(new URL('../fixtures/formats/', import.meta.url))

/** Every golden checkpoint as "family/name". */
export const GOLDEN: readonly string[] = readdirSync(root)
  .flatMap((family) => readdirSync(`${root}${family}`).map((name) => `${family}/${name}`))
  .toSorted()

/** Folder of a golden checkpoint. */
export function goldenFolder(name: string): string {
  return `${root}${name}/checkpoint`
}

/** Its card. */
export function goldenCard(name: string): ModelCard {
  return readModelCard(goldenFolder(name), () => {
    throw new Error('no GGUF is expected here')
  })
}

/** A load of a golden checkpoint at its own rung. */
export function goldenRequest(name: string): LoadRequest {
  const { spec, files, weights, precision } = goldenCard(name)
  return { spec, files, weights, precision, maxSlots: 8, maxBatchTokens: 256, blockSize: BLOCK_SIZE }
}

/** A prompt with the float32 reference's logits after its last token. */
export interface GoldenPrompt {
  ids: number[]
  logits: Float32Array
}

/**
 * The prompts of a golden checkpoint. Where the writer's own forward quantizes activations too, its way differs from
 * ours: the logits are then those of its weights alone.
 */
export function goldenPrompts(name: string): GoldenPrompt[] {
  const weightOnly = `${root}${name}/weight_only_logits.npz`
  const logits = readNpz(existsSync(weightOnly) ? weightOnly : `${root}${name}/expected_logits.npz`)
  // oxlint-disable-next-line typescript/no-unsafe-type-assertion -- the fixture's own shape
  const { prompts } = JSON.parse(readFileSync(`${root}${name}/expected.json`, 'utf8')) as {
    prompts: { input_ids: number[] }[]
  }
  return prompts.map(({ input_ids: ids }, i) => ({
    ids,
    logits: logits.get(`last_${i}`)?.values ?? new Float32Array(),
  }))
}

/**
 * Allowed error of a logit as a share of the logits' standard deviation: the reference's own tolerance for fp16 compute,
 * which the quantized rungs keep to as well. Only fp8 weights become other ones, rounded to 8 bits for each output.
 */
export const logitTolerance = (name: string, precision: Precision): number =>
  name.includes('fp8') && precision === 'int8' ? 0.1 : 0.02

/**
 * Largest error of a logit after each prompt, as a share of the logits' standard deviation. A shift of all logits of a
 * row cannot be seen and is left out: their mean is aligned.
 */
export async function logitErrors(model: NativeModel, name: string, spec: DecoderSpec): Promise<number[]> {
  const every = Array.from({ length: spec.vocabSize }, (_, id) => id)
  const errors: number[] = []
  for (const { ids, logits } of goldenPrompts(name)) {
    // oxlint-disable-next-line no-await-in-loop -- prompts share the model's first slot
    const measured = await scoreNext(model, ids, every, promptRopes(spec, ids.length))
    const differences = Array.from(measured, (logprob, id) => logprob - (logits[id] ?? Number.NaN))
    const shift = differences.reduce((sum, difference) => sum + difference, 0) / differences.length
    const worst = Math.max(...differences.map((difference) => Math.abs(difference - shift)))
    errors.push(worst / standardDeviation(logits))
  }
  return errors
}
