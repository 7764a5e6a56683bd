/**
 * Damaged tokenizer files, through the engine's check and the gateway's own tokenizer: refused with the file's name, or
 * a text model that encodes and decodes. EDGESHIFT_FUZZ_CASES=1000000 runs that many; EDGESHIFT_FUZZ_SEED starts
 * elsewhere.
 */
import { copyFileSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, expect, test } from 'vitest'
import { parseHfConfig } from '../../engine/registry/hf-config.js'
import { readHfText } from '../../engine/registry/hf-text.js'
import { type ModelAsset, ModelFileError } from '../../engine/registry/index.js'
import { parseJsonObject } from '../../engine/registry/json-file.js'
import { parseAssets, type TextAssets } from '../../gateway/text/assets.js'
import { BpeEncoder } from '../../gateway/text/bpe.js'
import { decodeIds } from '../../gateway/text/detokenizer.js'
import { SpecialTokens } from '../../gateway/text/special-tokens.js'
import { TokenTable } from '../../gateway/text/token-table.js'
import { goldenFolder } from '../support/golden.js'
import { mutate, randomOf } from '../support/mutate.js'

const CASES = Number(process.env['EDGESHIFT_FUZZ_CASES'] ?? 1000)
const SEED = Number(process.env['EDGESHIFT_FUZZ_SEED'] ?? 1)
/** Of so many texts one is used, not only read. */
const USED = 16
const FILES = ['tokenizer.json', 'tokenizer_config.json', 'generation_config.json'] as const

const folder = mkdtempSync(join(tmpdir(), 'edgeshift-text-fuzz-'))
afterAll(() => rmSync(folder, { recursive: true }))

/** What the engine hands on, parsed by the gateway; undefined where one of them refuses it as it should. */
function readAssets(read: () => ModelAsset[]): TextAssets | undefined {
  try {
    const assets = read()
    return orRefused(() => parseAssets(assets))
  } catch (error) {
    if (error instanceof ModelFileError && error.message.startsWith(folder)) return undefined
    throw error
  }
}

/** A model whose text side does not build is not served; a mistake of the code would be a RangeError. */
function orRefused<T>(build: () => T): T | undefined {
  try {
    return build()
  } catch (error) {
    if (error instanceof Error && !(error instanceof RangeError) && error.message !== '') return undefined
    throw error
  }
}

/** Encodes and decodes with what was taken. */
async function use({ tokenizer }: TextAssets): Promise<void> {
  const encoder = orRefused(() => new BpeEncoder(tokenizer))
  if (encoder === undefined) return
  const table = new TokenTable(tokenizer)
  const special = new SpecialTokens(tokenizer.added_tokens.filter((token) => token.special))
  const text = special.split('Once upon a time, 12.5 {"a"}').find((part) => typeof part === 'string') ?? ''
  const [ids = []] = await encoder.encode([text]).catch(() => [[]])
  expect(
    typeof decodeIds(
      table,
      ids.filter((id) => id < table.size),
      false,
    ),
  ).toBe('string')
}

test.each(FILES)(
  '%s',
  async (name) => {
    const source = goldenFolder('plain/qwen2')
    for (const file of FILES) copyFileSync(join(source, file), join(folder, file))
    const config = parseHfConfig('config.json', parseJsonObject('c', readFileSync(join(source, 'config.json'))))
    const text = readFileSync(join(source, name), 'utf8')
    const random = randomOf(SEED)
    let taken = 0
    for (let i = 0; i < CASES; i++) {
      const bytes = mutate(text, random)
      writeFileSync(join(folder, name), bytes)
      try {
        const assets = readAssets(() => readHfText(folder, config.raw, config.contextLength))
        if (assets) taken++
        // Building a tokenizer takes far longer than reading its file.
        // oxlint-disable-next-line no-await-in-loop -- one folder
        if (assets && i % USED === 0) await use(assets)
      } catch (error) {
        throw new Error(`not handled: ${bytes.toString()}`, { cause: error })
      }
    }
    expect(taken).toBeGreaterThan(0)
    expect(taken).toBeLessThan(CASES)
  },
  20_000 + CASES * 5,
)
