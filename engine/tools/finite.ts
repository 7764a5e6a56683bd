/** Finds values that are not finite in the bytes of tensors, and the largest magnitude. */

/** Largest magnitude of a piece; Infinity or NaN when it holds one. */
export type PieceCheck = (piece: Buffer) => number

interface Checked {
  /** A piece must be a multiple of this many bytes. */
  unit: number
  largest: PieceCheck
}

/** Block types whose scales are fp16 at these byte offsets of a block (ggml's layouts). */
const BLOCKS: Readonly<Record<string, [bytes: number, ...scales: number[]]>> = {
  q4_0: [18, 0],
  q4_1: [20, 0, 2],
  q5_0: [22, 0],
  q5_1: [24, 0, 2],
  q8_0: [34, 0],
  q2_k: [84, 80, 82],
  q3_k: [110, 108],
  q4_k: [144, 0, 2],
  q5_k: [176, 0, 2],
  q6_k: [210, 208],
  iq4_nl: [18, 0],
  iq4_xs: [136, 0],
}

const FLOATS: Readonly<Record<string, Checked>> = {
  f64: { unit: 8, largest: (piece) => largestOf(new Float64Array(copy(piece))) },
  f32: { unit: 4, largest: (piece) => bits32(largestBits(new Uint32Array(copy(piece)), 0x7fffffff)) },
  f16: { unit: 2, largest: (piece) => half(largestBits(new Uint16Array(copy(piece)), 0x7fff)) },
  bf16: { unit: 2, largest: (piece) => bits32(largestBits(new Uint16Array(copy(piece)), 0x7fff) * 0x10000) },
  f8_e4m3: { unit: 1, largest: (piece) => float8(largestBits(piece, 0x7f)) },
}

/** How a type's values are checked; undefined for types without floats: codes and indices. */
export function finiteCheck(type: string): Checked | undefined {
  const block = Object.hasOwn(BLOCKS, type) ? BLOCKS[type] : undefined
  if (block) return { unit: block[0], largest: (piece) => largestScale(piece, block) }
  return Object.hasOwn(FLOATS, type) ? FLOATS[type] : undefined
}

// The magnitudes of IEEE floats order like their bits as unsigned numbers; infinities and NaN come last.
function largestBits(values: Uint8Array | Uint16Array | Uint32Array, mask: number): number {
  let largest = 0
  for (let i = 0; i < values.length; i++) {
    const magnitude = ((values[i] ?? 0) & mask) >>> 0
    if (magnitude > largest) largest = magnitude
  }
  return largest
}

function largestOf(values: Float64Array): number {
  let largest = 0
  // Math.max keeps a NaN.
  for (const value of values) largest = Math.max(largest, Math.abs(value))
  return largest
}

function largestScale(piece: Buffer, [bytes, ...scales]: [number, ...number[]]): number {
  let largest = 0
  for (let at = 0; at < piece.length; at += bytes) {
    for (const place of scales) largest = Math.max(largest, piece.readUInt16LE(at + place) & 0x7fff)
  }
  return half(largest)
}

/** Typed arrays need alignment, which a piece of a larger buffer may lack. */
function copy(piece: Buffer): ArrayBuffer {
  return Uint8Array.from(piece).buffer
}

function bits32(bits: number): number {
  return new Float32Array(Uint32Array.of(bits).buffer)[0] ?? 0
}

function half(bits: number): number {
  const exponent = bits >> 10
  const fraction = bits & 0x3ff
  if (exponent === 31) return fraction === 0 ? Infinity : Number.NaN
  return exponent === 0 ? fraction * 2 ** -24 : (1 + fraction / 1024) * 2 ** (exponent - 15)
}

// e4m3 without infinities: only 0x7f is NaN.
function float8(bits: number): number {
  if (bits === 0x7f) return Number.NaN
  const exponent = bits >> 3
  return exponent === 0 ? (bits & 7) * 2 ** -9 : (1 + (bits & 7) / 8) * 2 ** (exponent - 7)
}
