import { describe, expect, test } from 'vitest'
import { type ModelConfig, parseConfig, type VariantConfig } from '../../engine/config/index.js'
import { readRungs } from '../../engine/residency/rungs.js'
import type { ModelCard } from '../../engine/registry/index.js'
import { goldenCard } from '../support/golden.js'

const CARDS: Record<string, string> = {
  fp16: 'plain/llama_fp16',
  int8: 'gptq/w8_g128_sym',
  int4: 'awq/w4_g128',
}

function model(...variants: VariantConfig[]): ModelConfig {
  const [parsed] = parseConfig('models: [{ id: m, variants: [{ path: x }] }]', 'models.yaml').models
  if (parsed === undefined) throw new Error('no model')
  return { ...parsed, variants }
}

function cardOf(path: string): ModelCard | Error {
  const name = CARDS[path]
  return name === undefined ? new Error('no such file') : goldenCard(name)
}

/** "name: ok" or "name: reason" of each rung. */
function rungs(...variants: VariantConfig[]): string[] {
  return readRungs(model(...variants), cardOf).map(
    ({ name, card }) => `${name}: ${card instanceof Error ? card.message : 'ok'}`,
  )
}

describe('a ladder by its files', () => {
  test.each<[string, VariantConfig[], string[]]>([
    ['only paths', [{ path: 'fp16' }, { path: 'int8' }, { path: 'int4' }], ['m:fp16: ok', 'm:int8: ok', 'm:int4: ok']],
    ['fp16 of 4-bit weights', [{ path: 'int4', precision: 'fp16' }], ['m:fp16: ok']],
    ['derived', [{ path: 'fp16' }, { path: 'fp16', precision: 'int4', from: 'fp16' }], ['m:fp16: ok', 'm:int4: ok']],
    [
      'derived from a rung whose precision is read',
      [{ path: 'fp16' }, { path: 'int8' }, { path: 'fp16', precision: 'int4', from: 'int8' }],
      ['m:fp16: ok', 'm:int8: ok', 'm:int4: ok'],
    ],
    [
      'derived from what no file holds',
      [{ path: 'int8' }, { path: 'int8', precision: 'int4', from: 'fp16' }],
      ['m:int8: ok', 'm:int4: no file of the ladder holds fp16 weights'],
    ],
    [
      'int8 of 4-bit weights',
      [{ path: 'int4', precision: 'int8' }],
      ['m:int8: int4: models.yaml says precision int8; the files say int4'],
    ],
    ['format', [{ path: 'int4', format: 'gptq' }], ['m:int4: int4: models.yaml says format gptq; the files say awq']],
    ['container as format', [{ path: 'int4', format: 'safetensors' }], ['m:int4: ok']],
    [
      'family',
      [{ path: 'fp16', family: 'qwen2' }],
      ['m:fp16: fp16: models.yaml says family qwen2; the files say llama'],
    ],
    [
      'the same width twice',
      [{ path: 'int4' }, { path: 'int4' }],
      ['m:int4: ok', 'm:fp16: int4: holds int4 weights, and the ladder has an int4 rung already'],
    ],
    [
      'the wrong order',
      [{ path: 'int4' }, { path: 'fp16' }],
      ['m:int4: ok', 'm:fp16: fp16: holds fp16 weights and stands below a worse rung; the best precision comes first'],
    ],
    [
      'a file that is missing gets a name that is free',
      [{ path: 'gone' }, { path: 'fp16', precision: 'fp16' }],
      ['m:int8: no such file', 'm:fp16: ok'],
    ],
  ])('%s', (_, variants, expected) => {
    expect(rungs(...variants)).toEqual(expected)
  })
})
