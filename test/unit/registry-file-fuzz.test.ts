/**
 * Damaged headers, configurations and indices: either a description that makes sense or a ModelFileError that names
 * the file, nothing else. EDGESHIFT_FUZZ_CASES=1000000 runs that many of each; EDGESHIFT_FUZZ_SEED starts elsewhere.
 */
import { readFileSync } from 'node:fs'
import { basename, join } from 'node:path'
import { expect, test } from 'vitest'
import { parseHfConfig } from '../../engine/registry/hf-config.js'
import { ModelFileError } from '../../engine/registry/index.js'
import { parseJsonObject } from '../../engine/registry/json-file.js'
import { readShardMap } from '../../engine/registry/locate.js'
import { parseQuantizationConfig } from '../../engine/registry/quantization-config.js'
import { parseSafetensors } from '../../engine/registry/safetensors.js'
import { goldenFolder } from '../support/golden.js'
import { mutate, randomOf } from '../support/mutate.js'

const CASES = Number(process.env['EDGESHIFT_FUZZ_CASES'] ?? 2000)
const SEED = Number(process.env['EDGESHIFT_FUZZ_SEED'] ?? 1)
const TIMEOUT_MS = 20_000 + CASES
const FILE = 'fuzzed'

const textOf = (name: string, file: string) => readFileSync(join(goldenFolder(name), file), 'utf8')

function headerOf(name: string): { text: string; fileBytes: number } {
  const bytes = readFileSync(join(goldenFolder(name), 'model.safetensors'))
  return { text: bytes.toString('utf8', 8, 8 + Number(bytes.readBigUInt64LE(0))), fileBytes: bytes.length }
}

/** Runs `parse` on damaged texts; gives how many were accepted. */
function fuzz(texts: readonly string[], parse: (bytes: Buffer, source: number) => boolean): number {
  const random = randomOf(SEED)
  let accepted = 0
  for (let i = 0; i < CASES; i++) {
    const source = i % texts.length
    const bytes = mutate(texts[source] ?? '', random)
    if (isHandled(() => parse(bytes, source), bytes)) accepted++
  }
  return accepted
}

function isHandled(parse: () => boolean, bytes: Buffer): boolean {
  try {
    if (parse()) return true
  } catch (error) {
    if (error instanceof ModelFileError && /^fuzzed: ./.test(error.message)) return false
    throw new Error(`not handled: ${bytes.toString()}`, { cause: error })
  }
  throw new Error(`makes no sense: ${bytes.toString()}`)
}

test(
  'safetensors headers',
  () => {
    const headers = [headerOf('plain/llama_fp16'), headerOf('gptq/w4_g64_asym')]
    const accepted = fuzz(
      headers.map(({ text }) => text),
      (bytes, source) => {
        const fileBytes =
          8 + bytes.length + (headers[source]?.fileBytes ?? 0) - 8 - Buffer.byteLength(headers[source]?.text ?? '')
        const { tensors } = parseSafetensors(FILE, bytes, fileBytes)
        return tensors.every(({ offset, bytes: size }) => offset >= 0 && size >= 0 && offset + size <= fileBytes)
      },
    )
    expect(accepted).toBeLessThan(CASES)
  },
  TIMEOUT_MS,
)

test(
  'config.json with its quantization',
  () => {
    const names = [
      'plain/llama_rope_yarn',
      'plain/qwen3',
      'gptq/w4_dynamic_mixed',
      'awq/w4_g64',
      'compressed-tensors/w4a16_g128_asym',
    ]
    const accepted = fuzz(
      names.map((name) => textOf(name, 'config.json')),
      (bytes) => {
        const { raw, spec, contextLength } = parseHfConfig(FILE, parseJsonObject(FILE, bytes))
        const storage = parseQuantizationConfig(
          FILE,
          raw.quantization_config ?? undefined,
        )('model.layers.0.mlp.up_proj')
        const values = [spec.headDim, spec.attentionScale, contextLength, ...spec.ropes.map(({ table }) => table.scale)]
        const rotates = spec.ropes.every(({ table }) =>
          table.invFreq.every((frequency) => frequency > 0 && frequency <= 1),
        )
        return rotates && values.every((value) => value > 0 && Number.isFinite(value)) && storage.method !== undefined
      },
    )
    expect(accepted).toBeGreaterThan(0)
  },
  TIMEOUT_MS,
)

test(
  'indices of shards',
  () => {
    const accepted = fuzz([textOf('plain/llama_bf16_sharded', 'model.safetensors.index.json')], (bytes) => {
      const { names, index } = readShardMap(FILE, parseJsonObject(FILE, bytes))
      const plain = names.every((name) => basename(name) === name && !/[\\\0]|^\./.test(name))
      return plain && [...index.places.values()].every((place) => place >= 0 && place < names.length)
    })
    expect(accepted).toBeGreaterThan(0)
  },
  TIMEOUT_MS,
)
