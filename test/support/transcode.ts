/** SmolLM2's q4_1 matrices written anew in other formats, exactly: what is left of a model stays in its own file. */
import { closeSync, openSync, readFileSync, writeSync } from 'node:fs'
import type { LoadRequest, TensorRef, WeightSource } from '../../engine/native.js'
import { plainWeight } from '../../engine/registry/stored-weight.js'

const BLOCK_BYTES = 20
const HEADER_BYTES = 4

/** Code i of a block's 32: byte i holds weights i and i + 16. */
const codeAt = (file: Buffer, block: number, i: number): number =>
  ((file[block + HEADER_BYTES + (i % 16)] ?? 0) >> (i < 16 ? 0 : 4)) & 15

/** Writes every q4_1 matrix by `write` into a new file and tells of it in the place of the old. */
function rewrite(
  request: LoadRequest,
  path: string,
  write: (source: Buffer, old: TensorRef, weight: WeightSource, put: Put) => WeightSource,
): LoadRequest {
  const source = readFileSync(request.files[0] ?? '')
  const file = openSync(path, 'w')
  let offset = 0
  const put: Put = (bytes, type, shape) => {
    writeSync(file, bytes)
    offset += bytes.length
    return { file: 1, offset: offset - bytes.length, bytes: bytes.length, type, shape }
  }
  const weights = request.weights.map((weight) => {
    const { values } = weight.tensors
    return values?.type === 'q4_1' ? write(source, values, weight, put) : weight
  })
  closeSync(file)
  return { ...request, files: [...request.files, path], weights }
}

type Put = (bytes: Uint8Array, type: string, shape: number[]) => TensorRef

/** As float32. */
export function asFloats(request: LoadRequest, path: string): LoadRequest {
  return rewrite(request, path, (source, old, { slot, shape }, put) => {
    const values = new Float32Array((old.bytes / BLOCK_BYTES) * 32)
    for (let b = 0; b < old.bytes / BLOCK_BYTES; b++) {
      const block = old.offset + b * BLOCK_BYTES
      const scale = halfToFloat(source.readUInt16LE(block))
      const minimum = halfToFloat(source.readUInt16LE(block + 2))
      for (let i = 0; i < 32; i++) values[b * 32 + i] = Math.fround(codeAt(source, block, i) * scale) + minimum
    }
    return plainWeight(slot, shape, put(new Uint8Array(values.buffer), 'f32', shape))
  })
}

/** As AWQ gemv_fast in groups of 32, which also stores a binary16 minimum: AutoAWQ's pack_intweight. */
export function asAwq(request: LoadRequest, path: string): LoadRequest {
  return rewrite(request, path, (source, old, { slot, shape }, put) => {
    const [n = 0, k = 0] = shape
    const groups = k / 32
    const width = Math.ceil(Math.ceil(groups / 8) / 4) * 32
    const scales = new Uint16Array(width * n)
    const minimums = new Uint16Array(width * n)
    const words = new Uint16Array((n / 4) * k)
    for (let row = 0; row < n; row++)
      for (let g = 0; g < groups; g++) {
        const block = old.offset + (row * groups + g) * BLOCK_BYTES
        scales[g * n + row] = source.readUInt16LE(block)
        minimums[g * n + row] = source.readUInt16LE(block + 2)
        // 64 inputs of four rows are 64 words of four codes: row by row, each 32 dealt to every fourth place of eight.
        const first = (row >> 2) * k + (g >> 1) * 64 + (row % 4) * 16 + (g % 2) * 8
        for (let place = 0; place < 32; place++) {
          const word = first + (place >> 2)
          const input = (place >> 2) + (place % 4) * 8
          words[word] = (words[word] ?? 0) | (codeAt(source, block, input) << ((place % 4) * 4))
        }
      }
    const bytes = (array: Uint16Array): Uint8Array => new Uint8Array(array.buffer)
    return {
      slot,
      shape,
      storage: { method: 'awq', version: 'gemv_fast', bits: 4, groupSize: 32 },
      tensors: {
        codes: put(bytes(words), 'i16', [n / 4, k]),
        scales: put(bytes(scales), 'f16', [width, n]),
        zeroPoints: put(bytes(minimums), 'f16', [width, n]),
      },
    }
  })
}

function halfToFloat(bits: number): number {
  const sign = bits & 0x8000 ? -1 : 1
  const exponent = (bits >> 10) & 31
  const mantissa = bits & 1023
  return exponent === 0 ? sign * mantissa * 2 ** -24 : sign * (1 + mantissa / 1024) * 2 ** (exponent - 15)
}
