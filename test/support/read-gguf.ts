/** A second, simple GGUF reader for tests: trusts its file. The product's reader is native. */
import { readFileSync } from 'node:fs'
import type { GgufFile, GgufValue, TensorInfo } from '../../engine/native.js'

const TYPES: Record<number, [name: string, blockBytes: number, blockWeights: number]> = {
  0: ['f32', 4, 1],
  1: ['f16', 2, 1],
  2: ['q4_0', 18, 32],
  3: ['q4_1', 20, 32],
  6: ['q5_0', 22, 32],
  7: ['q5_1', 24, 32],
  8: ['q8_0', 34, 32],
  30: ['bf16', 2, 1],
}

/** Parses a well-formed GGUF v3 file. */
export function readGgufInTypeScript(path: string): GgufFile {
  const bytes = readFileSync(path)
  let at = 4
  const take = <T>(size: number, value: T): T => {
    at += size
    return value
  }
  const u32 = () => take(4, bytes.readUInt32LE(at))
  const u64 = () => take(8, Number(bytes.readBigUInt64LE(at)))
  const text = () => {
    const size = u64()
    return take(size, bytes.toString('utf8', at, at + size))
  }
  const scalars: Record<number, () => GgufValue> = {
    0: () => take(1, bytes.readUInt8(at)),
    1: () => take(1, bytes.readInt8(at)),
    2: () => take(2, bytes.readUInt16LE(at)),
    3: () => take(2, bytes.readInt16LE(at)),
    4: u32,
    5: () => take(4, bytes.readInt32LE(at)),
    6: () => take(4, bytes.readFloatLE(at)),
    7: () => take(1, bytes.readUInt8(at) === 1),
    8: text,
    9: () => {
      const type = u32()
      return Array.from({ length: u64() }, () => value(type))
    },
    10: u64,
    11: () => take(8, Number(bytes.readBigInt64LE(at))),
    12: () => take(8, bytes.readDoubleLE(at)),
  }
  const value = (type: number): GgufValue => {
    const read = scalars[type]
    if (read === undefined) throw new Error(`value type ${type}`)
    return read()
  }
  const version = u32()
  const tensorCount = u64()
  const entries = Array.from({ length: u64() }, (): [string, GgufValue] => [text(), value(u32())])
  const metadata = Object.fromEntries(entries)
  const infos = Array.from({ length: tensorCount }, () => {
    const name = text()
    const shape = Array.from({ length: u32() }, u64).toReversed()
    return { name, shape, type: u32(), offset: u64() }
  })
  const start = Math.ceil(at / 32) * 32
  const tensors = infos.map(({ name, shape, type, offset }): TensorInfo => {
    const [typeName, blockBytes, blockWeights] = TYPES[type] ?? ['?', 0, 1]
    const elements = shape.reduce((product, size) => product * size, 1)
    return { name, type: typeName, shape, offset: start + offset, bytes: (elements / blockWeights) * blockBytes }
  })
  return { version, metadata, tensors }
}
