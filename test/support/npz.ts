/** Reads NumPy's .npz archives (zip of .npy files, stored or deflated) of float32 arrays; trusts its file. */
import { readFileSync } from 'node:fs'
import { inflateRawSync } from 'node:zlib'

/** An array in row-major order. */
export interface NpyArray {
  shape: number[]
  values: Float32Array
}

const END_OF_DIRECTORY = 0x06054b50

/** The archive's arrays by name. */
export function readNpz(file: string): Map<string, NpyArray> {
  const zip = readFileSync(file)
  let end = zip.length - 22
  while (zip.readUInt32LE(end) !== END_OF_DIRECTORY) end--
  const arrays = new Map<string, NpyArray>()
  let at = zip.readUInt32LE(end + 16)
  for (let left = zip.readUInt16LE(end + 10); left > 0; left--) {
    const [nameBytes, extraBytes, commentBytes] = [28, 30, 32].map((place) => zip.readUInt16LE(at + place))
    const name = zip.toString('utf8', at + 46, at + 46 + (nameBytes ?? 0))
    arrays.set(name.replace(/\.npy$/, ''), parseNpy(entryBytes(zip, at)))
    at += 46 + (nameBytes ?? 0) + (extraBytes ?? 0) + (commentBytes ?? 0)
  }
  return arrays
}

function entryBytes(zip: Buffer, at: number): Buffer {
  const local = zip.readUInt32LE(at + 42)
  const start = local + 30 + zip.readUInt16LE(local + 26) + zip.readUInt16LE(local + 28)
  const bytes = zip.subarray(start, start + zip.readUInt32LE(at + 20))
  return zip.readUInt16LE(at + 10) === 0 ? bytes : inflateRawSync(bytes)
}

function parseNpy(bytes: Buffer): NpyArray {
  const start = 10 + bytes.readUInt16LE(8)
  const header = bytes.toString('latin1', 10, start)
  if (!header.includes("'<f4'")) throw new Error(`not float32: ${header}`)
  const shape = [...(/'shape': \(([^)]*)\)/.exec(header)?.[1] ?? '').matchAll(/\d+/g)].map(([digits]) => Number(digits))
  const data = Uint8Array.from(bytes.subarray(start))
  return { shape, values: new Float32Array(data.buffer) }
}
