/**
 * The addon's types: everything TypeScript may know of the native side. The addon validates only what
 * guards memory (bounds of files, tables and token ids); everything else is validated before it is called.
 * Errors it throws are `NativeError`s; promises reject with the same.
 */

/** A rung of the ladder: the width that a model's matrices are kept in. */
export type Precision = 'fp16' | 'int8' | 'int4'

/** What keys and values are cached as; fp8 (e4m3) and int8 with a scale per token and kv head (native/ops/kv_codes.h). */
export type KvCacheDtype = 'fp16' | 'fp8' | 'int8'

/** `code` is stable: invalid_file, unsupported, out_of_memory, invalid_argument, device_failed, io_error, disk_full. */
export interface NativeError extends Error {
  code: string
}

/** One device that the native side can run on. */
export interface NativeDeviceInfo {
  kind: 'cpu' | 'cuda'
  index: number
  /** Marketing name, e.g. "AMD EPYC 9354". */
  name: string
  /** Physical memory, bytes. */
  memoryBytes: number
  /** Instruction sets in use ("avx2", "avx512-vnni") or compute capability ("sm_90"). */
  features: string[]
}

/** One tensor of a checkpoint file. `shape` is row-major, outermost first ([N, K] for a matrix). */
export interface TensorInfo {
  name: string
  /** Element or block type in lower case: f32, f16, bf16, q4_0, q4_1, q5_0, q5_1, q8_0. */
  type: string
  shape: number[]
  /** Absolute byte offset in the file; checked to lie inside it. */
  offset: number
  bytes: number
}

/** A parsed GGUF header. 64-bit integers above 2^53 are refused as invalid_file. */
export interface GgufFile {
  version: number
  metadata: Record<string, GgufValue>
  tensors: TensorInfo[]
}

/** Numeric arrays come as typed arrays or number[], string arrays as string[]. */
export type GgufValue = number | boolean | string | readonly string[] | ArrayLike<number> | GgufValue[]

/** Rotary frequencies, context scaling applied. */
export interface RopeTable {
  /** Inverse frequencies, length rotary_dim / 2. */
  invFreq: Float32Array
  /** Multiplies cos and sin (yarn, longrope); 1 otherwise. */
  scale: number
}

/** Function between the gate and up projections. gelu_tanh: the tanh approximation of GELU. */
export type Activation = 'silu' | 'gelu_tanh'

/** Hyperparameters of a decoder-only transformer. Every family is a setting of these fields. */
export interface ModelSpec {
  vocabSize: number
  hiddenSize: number
  numLayers: number
  numHeads: number
  numKvHeads: number
  headDim: number
  intermediateSize: number
  rmsNormEps: number
  /** Usually one; Gemma 3 has one for full and one for windowed layers. */
  ropes: { table: RopeTable }[]
  /** [numLayers] index into `ropes`; -1 = the layer does not rotate (SmolLM3's NoPE layers). */
  layerRopes: Int32Array
  /** true: pairs are (2i, 2i+1) as in llama.cpp's llama files; false: (i, i + rotary_dim/2) as in Hugging Face. */
  ropeInterleaved: boolean
  /** Softmax scale, usually 1/sqrt(headDim). */
  attentionScale: number
  /** Sliding window per layer in tokens, 0 = full attention; length numLayers. */
  windows: Int32Array
  activation: Activation
  /** Added to every norm weight (Gemma: 1, its files store w - 1); 0 otherwise. */
  normWeightOffset: number
  /** Multiplies the embedding's output (Gemma: sqrt(hiddenSize)); 1 otherwise. */
  embeddingScale: number
  /** Scores s become c * tanh(s / c) before the mask; 0 = off. */
  attentionSoftcap: number
  /** The same for logits; 0 = off. */
  finalSoftcap: number
  /** Norms on the outputs of attention and feed-forward, before the residual (post_attn_norm, post_ffn_norm). */
  postNorms: boolean
}

/** Bytes of one tensor, or of a range of its rows, in one of the model's files. */
export interface TensorRef {
  /** Index into LoadRequest.files. */
  file: number
  /** Absolute byte offset. */
  offset: number
  bytes: number
  /** Element or block type in lower case: f32, f16, bf16, f8_e4m3, i8, i16, i32, q4_0, ... */
  type: string
  /** Row-major, outermost first, in elements of `type`. */
  shape: number[]
}

/**
 * How a matrix is stored; layouts in native/quant/affine_codes.cpp. `groupSize`: inputs that share a scale, 0 = all.
 * plain: floats or GGUF blocks in `values`. The others keep their codes in `codes` (int-quantized and float-quantized
 * too) beside `scales` and, where the method has them, `zeroPoints` and `groupIndex`. `quantizedActivations`: the file
 * was made for activations quantized too. `actOrder`: input k is in group groupIndex[k]; otherwise in k div groupSize,
 * unless there is a groupIndex that says otherwise.
 */
export type Storage =
  | { method: 'plain' }
  | { method: 'gptq'; bits: 2 | 3 | 4 | 8; groupSize: number; zeroPointsMinusOne: boolean; actOrder: boolean }
  | { method: 'awq'; version: 'gemm' | 'gemv' | 'gemv_fast'; bits: 4 | 8; groupSize: number }
  | { method: 'pack-quantized'; bits: 4 | 8; groupSize: number; symmetric: boolean }
  | { method: 'int-quantized'; groupSize: number; quantizedActivations: boolean }
  | {
      method: 'float-quantized'
      /** Whose names and rules the file follows. */
      layout: 'compressed-tensors' | 'fp8'
      quantizedActivations: boolean
      /** Outputs and inputs that share a scale; 0 = one scale for each output or for all. */
      blockOutputs: number
      blockInputs: number
    }

/** A role that a tensor plays in a stored weight. */
export type TensorRole = 'values' | 'codes' | 'scales' | 'zeroPoints' | 'groupIndex'

/** One logical weight: where its bytes are and how they are stored. */
export interface WeightSource {
  /**
   * embed, final_norm, head (absent = tied to embed), and per layer i "layers.i." + attn_norm, q, k, v, o, q_bias,
   * k_bias, v_bias, o_bias, q_norm, k_norm, post_attn_norm (on the attention's output, before the residual), ffn_norm
   * (before the feed-forward), gate, up, down, gate_bias, up_bias, down_bias, post_ffn_norm. Where a quantized file
   * keeps q, k, v or gate, up as one matrix: qkv, gate_up (rows in this order), with qkv_bias, gate_up_bias.
   */
  slot: string
  /** Logical: [N] or [N, K] with N outputs and K inputs. */
  shape: number[]
  storage: Storage
  tensors: Partial<Record<TensorRole, TensorRef>>
}

/** Everything a device needs to make one variant resident. */
export interface LoadRequest {
  spec: ModelSpec
  files: string[]
  weights: WeightSource[]
  precision: Precision
  /** Slots the step functions may use, i.e. the largest number of concurrent sequences. */
  maxSlots: number
  /** Largest number of tokens of one step; sizes the workspace. */
  maxBatchTokens: number
  /** Tokens per KV block. */
  blockSize: number
  /** fp16 when absent. */
  kvCacheDtype?: KvCacheDtype
}

/** A repacked file (native/loader/packed_file.h) and the key that it must have. */
export interface PackedSource {
  path: string
  key: string
}

/** Blocks of one size to copy: entries as in block tables, of the arena and of the swap memory, as many of each. */
export interface KvCopy {
  toHost: boolean
  deviceBlocks: Uint32Array
  hostBlocks: Uint32Array
  blockBytes: number
}

/** How a device is opened. */
export interface DeviceOptions {
  kind: 'cpu' | 'cuda'
  index: number
  /** CPU worker threads; ignored for CUDA. */
  threads: number
  /** Bytes of the KV arena, reserved once. Offsets in block tables are in units of `KV_UNIT_BYTES` in it. */
  kvArenaBytes: number
  /** Page-locked memory that keeps packed weights for loads that come back (CUDA only); 0 when absent. */
  hostCacheBytes?: number
  /** Host memory that KV blocks can be copied to, page-locked for CUDA; 0 when absent. */
  swapBytes?: number
}

/** Granularity of block table entries in bytes: entry e addresses arena byte e * KV_UNIT_BYTES. */
export const KV_UNIT_BYTES = 256

/** The addon's module object. */
export interface NativeAddon {
  version(): string
  devices(): NativeDeviceInfo[]
  /** Maps and parses a GGUF header; throws invalid_file with the place and the reason. */
  readGguf(path: string): GgufFile
  /**
   * Bytes of a GPU that are in use, whoever has them, as its driver says, with this process's context there, which is made
   * where there is none yet. Throws unsupported where there is no such GPU.
   */
  usedBytes(index: number): number
  /** Throws out_of_memory when the arena cannot be reserved. */
  openDevice(options: DeviceOptions): NativeDevice
}

/**
 * An open device: owns the arena and four threads, each in order and off the event loop: one runs loads, one writes repacked
 * files at the lowest priority, one starts everything else, one waits for what was started. Steps of resident models go on while another model loads.
 */
export interface NativeDevice {
  /**
   * A transaction: on rejection every byte taken is given back. The files are mapped while it runs; one that is
   * truncated meanwhile kills the process (SIGBUS), so replace model files by renaming. `packed`: where the matrices may
   * come from instead; where that file cannot be used, they come from the model's files (NativeModel.packedFault).
   */
  loadModel(request: LoadRequest, packed?: PackedSource): Promise<NativeModel>
  /** Names the layout of this device's repacked files: those of equal names, requests and files are equal. */
  readonly packedLayout: string
  /** Whether the arena takes memory only where it is written to, and discardKv gives it back. */
  readonly elasticKv: boolean
  /** Forgets a stretch of the arena that no step to come refers to; in the order of the steps. */
  discardKv(range: { offset: number; bytes: number }): Promise<void>
  /** Bytes per second that the device reads from its memory, measured now, behind the steps issued before. */
  readBandwidth(): Promise<number>
  /** Bytes of a GPU that are in use, whoever has them, as its driver says, behind the loads issued before; undefined on a CPU. */
  usedBytes(): Promise<number | undefined>
  /**
   * Bytes of page-locked memory for copies of loaded weights, as soon as it is known whether they can be had: all that
   * were asked for, or 0. Taking a gigabyte takes about a second; nothing else waits for it.
   */
  hostCacheBytes(): Promise<number>
  /** Copies KV blocks to or from the swap memory, in the order of the steps; steps that follow see them copied. */
  copyKv(copy: KvCopy): Promise<{ deviceMicros: number }>
  /** Frees the arena and stops the threads. All models must be unloaded first. */
  close(): Promise<void>
}

/** One resident variant. */
export interface NativeModel {
  readonly weightBytes: number
  readonly workspaceBytes: number
  /**
   * What rounding to nearest took at the load: the root of the squared error over the weights' own squares, in the mean
   * over the rounded matrices by their number of weights; 0 = every matrix is as the file has it.
   */
  readonly roundingError: number
  /** Bytes of one KV block (all layers, keys and values), a multiple of KV_UNIT_BYTES. */
  readonly blockBytes: number
  /** Where the load took the matrices from; host_copy: NativeDevice's host cache. */
  readonly origin: 'files' | 'packed_file' | 'host_copy'
  /** What was wrong with the repacked file; empty = nothing, or there was none. */
  readonly packedFault: string
  /** Bytes of the matrices as a repacked file holds them. */
  readonly packedBytes: number
  /**
   * Writes a repacked file, which must not exist, until it is on the disk. On rejection there is no file: disk_full,
   * io_error; invalid_argument when unload() came first, which ends it.
   */
  savePacked(to: PackedSource): Promise<void>
  /**
   * Starts a sequence in a slot: sampling state from its parameters and the tokens so far.
   * Must be called before the first step with that slot; calling it again replaces the state (preemption, replay).
   */
  setSlot(slot: number, state: SlotState): void
  /** Runs one batch. May be called again before it resolves; steps run in order. */
  step(batch: StepBatch): Promise<StepResult>
  /**
   * The masks of the step begun last, whose rows name some: [M * ceil(vocab / 32)], M = 1 + the largest of rowMasks; bit
   * t % 32 of word t / 32 of a mask = token t may be sampled. To be called once, before any other call that runs in the
   * order of the device's steps; the step samples then. With another length that step rejects with invalid_argument.
   */
  giveMasks(masks: Uint32Array): void
  unload(): Promise<void>
}

/** Sampling state of one sequence; neutral values as in SamplingParams of engine.proto. */
export interface SlotState {
  temperature: number
  topK: number
  topP: number
  minP: number
  repetitionPenalty: number
  presencePenalty: number
  frequencyPenalty: number
  /** Unsigned 53-bit. Draws depend only on (seed, absolute position, token). */
  seed: number
  biasTokens: Int32Array
  biasValues: Float32Array
  /** Masked (never sampled) while fewer than minTokens output tokens exist. */
  stopTokens: Int32Array
  minTokens: number
  /** Prompt, then output so far. */
  tokens: Int32Array
  promptLength: number
  /**
   * Rotary tables of this sequence in the place of the model's, one for each and of the same length (rope scaling that
   * depends on the prompt's length); empty = the model's.
   */
  ropes: { table: RopeTable }[]
}

/**
 * One step over S sequences with T tokens in all, flattened; R rows get logits.
 * A sequence's tokens are consecutive and occupy positions firstPosition .. firstPosition + count - 1;
 * the KV of everything before firstPosition is already in its blocks.
 */
export interface StepBatch {
  /** [T] token ids; -1 = the token last sampled for the sequence's slot (the previous step need not have resolved). */
  tokens: Int32Array
  /** [S + 1] prefix sums of each sequence's token count. */
  seqStarts: Int32Array
  /** [S] position of each sequence's first token of this step. */
  firstPositions: Int32Array
  /** [S] slot of each sequence. */
  slots: Int32Array
  /** [S + 1] prefix sums into `blocks`. */
  blockStarts: Int32Array
  /** Block table entries of every sequence, covering position 0 to the last position of this step. */
  blocks: Uint32Array
  /** [R] index into `tokens`: whose logits the row is. */
  rowTokens: Int32Array
  /** [R] index into the sequences: whose slot samples or scores the row. */
  rowSeqs: Int32Array
  /** [R] token to score (prompt log probabilities), or -1 = sample and append to the slot's state. */
  rowTargets: Int32Array
  /** [R] alternatives to report, 0..20; -1 = no log probabilities at all. */
  rowTop: Int32Array
  /** [R] the mask that a sampled row obeys, from 0; -1 = none. Where there is any, giveMasks() must follow. */
  rowMasks: Int32Array
}

/** Results by row, in the order of the batch's rows. Log probabilities are natural, of the raw model distribution. */
export interface StepResult {
  /** [R] sampled token, or the target. */
  tokens: Int32Array
  /** [R], or empty when no row asked. */
  logprobs: Float32Array
  /** [R] 1-based rank of the token, or empty. */
  ranks: Int32Array
  /** [R * maxTop], maxTop = the largest rowTop; unused places hold -1. */
  topTokens: Int32Array
  topLogprobs: Float32Array
  /** Time the device spent on this step, microseconds. */
  deviceMicros: number
}
