/** Checkpoints of test/fixtures/formats, written by the tools of their formats, with their expected logits. */
import { readdirSync, readFileSync } from 'node:fs'
import { fileURLToPath } from 'node:url'
import { type ModelCard, readModelCard } from '../../engine/registry/index.js'
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

/** A prompt with the float32 reference's logits after its last token. */
export interface GoldenPrompt {
  ids: number[]
  logits: Float32Array
}

/** The prompts of a golden checkpoint. */
export function goldenPrompts(name: string): GoldenPrompt[] {
  const logits = readNpz(`${root}${name}/expected_logits.npz`)
  // oxlint-disable-next-line typescript/no-unsafe-type-assertion -- the fixture's own shape
  const { prompts } = JSON.parse(readFileSync(`${root}${name}/expected.json`, 'utf8')) as {
    prompts: { input_ids: number[] }[]
  }
  return prompts.map(({ input_ids: ids }, i) => ({
    ids,
    logits: logits.get(`last_${i}`)?.values ?? new Float32Array(),
  }))
}
