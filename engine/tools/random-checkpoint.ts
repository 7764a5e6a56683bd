/** Checkpoints of a named shape with random weights: speed does not depend on the values, and nothing is downloaded. */
import { randomFillSync } from 'node:crypto'
import { closeSync, mkdirSync, openSync, writeFileSync, writeSync } from 'node:fs'
import { join } from 'node:path'
import type { Precision } from '../native.js'

/** Sizes of a decoder-only transformer. */
export interface Shape {
  layers: number
  hidden: number
  ffn: number
  heads: number
  kvHeads: number
  headDim: number
  vocab: number
}

/** Published configurations; all are built as llama, whose kernels the others share. */
export const SHAPES: Readonly<Record<string, Shape>> = {
  'llama2-7b': { layers: 32, hidden: 4096, ffn: 11008, heads: 32, kvHeads: 32, headDim: 128, vocab: 32000 },
  'llama3-8b': { layers: 32, hidden: 4096, ffn: 14336, heads: 32, kvHeads: 8, headDim: 128, vocab: 128256 },
  'qwen2.5-0.5b': { layers: 24, hidden: 896, ffn: 4864, heads: 14, kvHeads: 2, headDim: 64, vocab: 151936 },
  'smollm2-135m': { layers: 30, hidden: 576, ffn: 1536, heads: 9, kvHeads: 3, headDim: 64, vocab: 49152 },
  'stories-tiny': { layers: 2, hidden: 128, ffn: 256, heads: 2, kvHeads: 1, headDim: 64, vocab: 512 },
}

const CONTEXT = 8192
const PIECE = 16 * 2 ** 20
/** One special token, the end of a text. */
const END = '<|end|>'

/** What stands in a tensor: random bytes, or random halves whose bits lie in [least, least + range). */
type Content = { bytes: 'random' } | { least: number; range: number; signed: boolean }

interface Tensor {
  name: string
  dtype: 'F16' | 'I32'
  shape: number[]
  content: Content
}

const CODES: Content = { bytes: 'random' }
const ONES: Content = { least: 0x3c00, range: 1, signed: false }
// 2^-7 to 2^-5: activations keep their size over the layers.
const WEIGHTS: Content = { least: 0x2000, range: 0x800, signed: true }
const SCALES = { 4: { least: 0x1c00, range: 0x400, signed: false }, 8: { least: 0x0c00, range: 0x400, signed: false } }
// The middle of the codes less one, in every field.
const ZEROS = { 4: { least: 0x7777, range: 1, signed: false }, 8: { least: 0x7f7f, range: 1, signed: false } }

/** Inputs that share a scale: 128 where the shape allows it. */
function groupOf({ hidden, ffn, heads, headDim }: Shape): number {
  return [128, 64, 32].find((group) => [hidden, ffn, heads * headDim].every((inputs) => inputs % group === 0)) ?? 32
}

function matrix(name: string, rows: number, columns: number, precision: Precision, group: number): Tensor[] {
  if (precision === 'fp16') return [{ name: `${name}.weight`, dtype: 'F16', shape: [rows, columns], content: WEIGHTS }]
  const bits = precision === 'int4' ? 4 : 8
  const groups = columns / group
  return [
    { name: `${name}.qweight`, dtype: 'I32', shape: [(columns * bits) / 32, rows], content: CODES },
    { name: `${name}.qzeros`, dtype: 'I32', shape: [groups, (rows * bits) / 32], content: ZEROS[bits] },
    { name: `${name}.scales`, dtype: 'F16', shape: [groups, rows], content: SCALES[bits] },
  ]
}

function tensorsOf(shape: Shape, precision: Precision): Tensor[] {
  const { hidden, ffn, heads, kvHeads, headDim, vocab } = shape
  const group = groupOf(shape)
  const norm = (name: string): Tensor => ({ name: `${name}.weight`, dtype: 'F16', shape: [hidden], content: ONES })
  const layer = (i: number): Tensor[] => {
    const at = `model.layers.${i}`
    const part = (name: string, rows: number, columns: number) =>
      matrix(`${at}.${name}_proj`, rows, columns, precision, group)
    return [
      norm(`${at}.input_layernorm`),
      norm(`${at}.post_attention_layernorm`),
      ...part('self_attn.q', heads * headDim, hidden),
      ...part('self_attn.k', kvHeads * headDim, hidden),
      ...part('self_attn.v', kvHeads * headDim, hidden),
      ...part('self_attn.o', hidden, heads * headDim),
      ...part('mlp.gate', ffn, hidden),
      ...part('mlp.up', ffn, hidden),
      ...part('mlp.down', hidden, ffn),
    ]
  }
  return [
    { name: 'model.embed_tokens.weight', dtype: 'F16', shape: [vocab, hidden], content: WEIGHTS },
    ...Array.from({ length: shape.layers }, (_, i) => layer(i)).flat(),
    norm('model.norm'),
    ...matrix('lm_head', vocab, hidden, precision, group),
  ]
}

const bytesOf = ({ dtype, shape }: Tensor): number =>
  shape.reduce((product, length) => product * length, dtype === 'F16' ? 2 : 4)

/** A piece of a tensor's content, to be written as often as the tensor is long. */
function pieceOf(content: Content, bytes: number): Buffer {
  const piece = randomFillSync(Buffer.from(new ArrayBuffer(bytes)))
  if ('bytes' in content) return piece
  const halves = new Uint16Array(piece.buffer)
  const { least, range, signed } = content
  for (const [i, random] of halves.entries())
    halves[i] = (least + ((random & 0x7fff) % range)) | (signed ? random & 0x8000 : 0)
  return piece
}

function writeTensors(file: string, tensors: readonly Tensor[]): void {
  let end = 0
  const header = Object.fromEntries(
    tensors.map((tensor) => {
      const start = end
      end += bytesOf(tensor)
      return [tensor.name, { dtype: tensor.dtype, shape: tensor.shape, data_offsets: [start, end] }]
    }),
  )
  const text = JSON.stringify(header)
  const length = Buffer.alloc(8)
  const padded = text.padEnd(Math.ceil(text.length / 8) * 8)
  length.writeBigUInt64LE(BigInt(padded.length))
  const descriptor = openSync(file, 'w')
  try {
    writeSync(descriptor, length)
    writeSync(descriptor, padded)
    const pieces = new Map<Content, Buffer>()
    const pieceBytes = Math.min(PIECE, Math.max(...tensors.map(bytesOf)))
    for (const tensor of tensors) {
      const piece = pieces.get(tensor.content) ?? pieceOf(tensor.content, pieceBytes)
      pieces.set(tensor.content, piece)
      for (let left = bytesOf(tensor); left > 0; left -= pieceBytes)
        writeSync(descriptor, piece, 0, Math.min(left, pieceBytes))
    }
  } finally {
    closeSync(descriptor)
  }
}

/** A tokenizer of bytes; the ids past them stand for words that no text becomes. */
function tokenizerOf(vocab: number): object {
  // The printable characters that byte-level BPE writes bytes as.
  const printable = Array.from({ length: 256 }, (_, byte) => byte).filter(
    (byte) => (byte >= 33 && byte <= 126) || (byte >= 161 && byte <= 172) || byte >= 174,
  )
  const rest = Array.from({ length: 256 }, (_, byte) => byte).filter((byte) => !printable.includes(byte))
  const characters = [...printable, ...rest.map((_, i) => 256 + i)].map((code) => String.fromCodePoint(code))
  const words = Array.from({ length: vocab - 257 }, (_, i) => `\u0120w${i}`)
  const tokens = [END, ...characters, ...words]
  const special = {
    id: 0,
    content: END,
    special: true,
    single_word: false,
    lstrip: false,
    rstrip: false,
    normalized: false,
  }
  const byteLevel = { type: 'ByteLevel', add_prefix_space: false, trim_offsets: true, use_regex: true }
  return {
    version: '1.0',
    added_tokens: [special],
    normalizer: null,
    pre_tokenizer: byteLevel,
    post_processor: null,
    decoder: byteLevel,
    model: {
      type: 'BPE',
      dropout: null,
      unk_token: null,
      continuing_subword_prefix: '',
      end_of_word_suffix: '',
      fuse_unk: false,
      vocab: Object.fromEntries(tokens.map((token, id) => [token, id])),
      merges: [],
    },
  }
}

function configOf(shape: Shape, precision: Precision): object {
  const config = {
    architectures: ['LlamaForCausalLM'],
    model_type: 'llama',
    hidden_act: 'silu',
    hidden_size: shape.hidden,
    intermediate_size: shape.ffn,
    num_hidden_layers: shape.layers,
    num_attention_heads: shape.heads,
    num_key_value_heads: shape.kvHeads,
    head_dim: shape.headDim,
    vocab_size: shape.vocab,
    max_position_embeddings: CONTEXT,
    rms_norm_eps: 1e-5,
    rope_theta: 10_000,
    tie_word_embeddings: false,
    bos_token_id: 0,
    eos_token_id: 0,
    torch_dtype: 'float16',
  }
  if (precision === 'fp16') return config
  const quantization = {
    quant_method: 'gptq',
    bits: precision === 'int4' ? 4 : 8,
    group_size: groupOf(shape),
    desc_act: false,
    sym: true,
    lm_head: true,
    checkpoint_format: 'gptq',
  }
  return { ...config, quantization_config: quantization }
}

/** Writes a checkpoint (config.json, tokenizer, model.safetensors: GPTQ at int8 and int4) into a folder, made if need be. */
export function writeRandomCheckpoint(folder: string, shape: Shape, precision: Precision): void {
  mkdirSync(folder, { recursive: true })
  const put = (name: string, value: object): void => writeFileSync(join(folder, name), JSON.stringify(value))
  const template = "{% for message in messages %}{{ message['content'] }}\n{% endfor %}"
  put('config.json', configOf(shape, precision))
  put('tokenizer.json', tokenizerOf(shape.vocab))
  put('tokenizer_config.json', { bos_token: null, eos_token: END, chat_template: template })
  writeTensors(join(folder, 'model.safetensors'), tensorsOf(shape, precision))
}
