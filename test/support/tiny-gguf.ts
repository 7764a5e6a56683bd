import type { GgufFile, GgufValue, TensorInfo } from '../../engine/native.js'

const HIDDEN = 32
const FFN = 64
const KV = 16

/** The 256 characters of the byte-level alphabet are more than a test needs: these and three special tokens. */
export const TINY_TOKENS = [
  '<s>',
  '</s>',
  '<unk>',
  'a',
  'b',
  'c',
  'd',
  'Ġ',
  'ab',
  'Ġa',
  'Ġab',
  '1',
  '2',
  '12',
  '.',
  '!',
]

/** A well-formed llama header of one layer, as the reader gives it; `changes` replace or (undefined) remove metadata. */
export function tinyGguf(
  changes: Record<string, GgufValue | undefined> = {},
  changeTensors: (tensors: TensorInfo[]) => TensorInfo[] = (tensors) => tensors,
): GgufFile {
  const metadata: Record<string, GgufValue | undefined> = {
    'general.architecture': 'llama',
    'general.name': 'tiny',
    'llama.context_length': 128,
    'llama.embedding_length': HIDDEN,
    'llama.block_count': 1,
    'llama.feed_forward_length': FFN,
    'llama.attention.head_count': 4,
    'llama.attention.head_count_kv': 2,
    'llama.attention.layer_norm_rms_epsilon': 1e-5,
    'tokenizer.ggml.model': 'gpt2',
    'tokenizer.ggml.pre': 'gpt-2',
    'tokenizer.ggml.tokens': TINY_TOKENS,
    'tokenizer.ggml.token_type': [3, 3, 2, ...TINY_TOKENS.slice(3).map(() => 1)],
    'tokenizer.ggml.merges': ['a b', 'Ġ a', 'Ġ ab', '1 2'],
    'tokenizer.ggml.bos_token_id': 0,
    'tokenizer.ggml.eos_token_id': 1,
    ...changes,
  }
  const entries = Object.entries(metadata).filter((entry): entry is [string, GgufValue] => entry[1] !== undefined)
  return { version: 3, metadata: Object.fromEntries(entries), tensors: changeTensors(tinyTensors()) }
}

function tinyTensors(): TensorInfo[] {
  const vocab = TINY_TOKENS.length
  const shapes: [string, number[]][] = [
    ['token_embd.weight', [vocab, HIDDEN]],
    ['blk.0.attn_norm.weight', [HIDDEN]],
    ['blk.0.attn_q.weight', [HIDDEN, HIDDEN]],
    ['blk.0.attn_k.weight', [KV, HIDDEN]],
    ['blk.0.attn_v.weight', [KV, HIDDEN]],
    ['blk.0.attn_output.weight', [HIDDEN, HIDDEN]],
    ['blk.0.ffn_norm.weight', [HIDDEN]],
    ['blk.0.ffn_gate.weight', [FFN, HIDDEN]],
    ['blk.0.ffn_up.weight', [FFN, HIDDEN]],
    ['blk.0.ffn_down.weight', [HIDDEN, FFN]],
    ['output_norm.weight', [HIDDEN]],
  ]
  return shapes.map(([name, shape]) => tensor(name, shape))
}

/** A tensor of f32 at offset 0. */
export function tensor(name: string, shape: number[], type = 'f32'): TensorInfo {
  return { name, type, shape, offset: 0, bytes: shape.reduce((product, size) => product * size, 4) }
}
