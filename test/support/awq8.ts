/** A GPTQ checkpoint of 8 bits (version 2, no act-order) in the layout that GPTQModel writes 8-bit AWQ in. */
import { cpSync, readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { goldenFolder } from './golden.js'

interface Entry {
  dtype: string
  shape: number[]
  data_offsets: [number, number]
}

/** Copies a golden checkpoint to `folder`, its codes repacked: zero points and scales lie alike in both. */
export function repackAsAwq8(name: string, folder: string): void {
  cpSync(goldenFolder(name), folder, { recursive: true })
  const file = join(folder, 'model.safetensors')
  const bytes = readFileSync(file)
  const data = 8 + Number(bytes.readBigUInt64LE(0))
  const header = JSON.parse(bytes.toString('utf8', 8, data)) as Record<string, Entry>
  const out: Record<string, Entry> = {}
  const parts: Buffer[] = []
  let offset = 0
  for (const [tensor, entry] of Object.entries(header)) {
    if (tensor === '__metadata__' || tensor.endsWith('.g_idx')) continue
    const [begin, end] = entry.data_offsets
    const stored = bytes.subarray(data + begin, data + end)
    const isCodes = tensor.endsWith('.qweight')
    const [words = 0, outputs = 0] = entry.shape
    const part = isCodes ? byInput(stored, words * 4, outputs) : stored
    const shape = isCodes ? [words * 4, outputs / 4] : entry.shape
    out[tensor] = { dtype: entry.dtype, shape, data_offsets: [offset, offset + part.length] }
    parts.push(part)
    offset += part.length
  }
  const text = Buffer.from(JSON.stringify(out))
  const size = Buffer.alloc(8)
  size.writeBigUInt64LE(BigInt(text.length))
  writeFileSync(file, Buffer.concat([size, text, ...parts]))
  const config = JSON.parse(readFileSync(join(folder, 'config.json'), 'utf8')) as Record<string, unknown>
  const quantization = { quant_method: 'awq', bits: 8, group_size: 64, version: 'gemm', zero_point: true }
  writeFileSync(join(folder, 'config.json'), JSON.stringify({ ...config, quantization_config: quantization }))
}

/** Words of four inputs of one output, [inputs / 4, outputs], to bytes [inputs, outputs]. */
function byInput(words: Buffer, inputs: number, outputs: number): Buffer {
  const bytes = Buffer.alloc(words.length)
  for (let input = 0; input < inputs; input++) {
    for (let output = 0; output < outputs; output++) {
      const from = ((input >> 2) * outputs + output) * 4 + (input & 3)
      bytes[input * outputs + output] = words[from] ?? 0
    }
  }
  return bytes
}
