/** Where tokenizers made from SentencePiece models (Llama 2, Mistral, Gemma, Phi-3) put a space before a text, or drop it. */
import { z } from 'zod'
import { SPACE_MARK } from '../../engine/text/token-bytes.js'
import type { TokenizerFile } from './assets.js'

const strip = z.looseObject({ type: z.literal('Strip'), content: z.literal(' '), start: z.int().min(1) })
const sequence = z.looseObject({ decoders: z.array(z.unknown()) })
const metaspace = z.looseObject({ type: z.literal('Metaspace'), prepend_scheme: z.literal('first') })
const pretokenizers = z.looseObject({ pretokenizers: z.array(z.unknown()) })

/** Whether decoding a whole text drops the space that encoding put before it. */
export function stripsLeadingSpace({ decoder }: TokenizerFile): boolean {
  return sequence.safeParse(decoder).data?.decoders.some((step) => strip.safeParse(step).success) ?? false
}

/** Whether a space goes before a text, but not before what follows a special token in it. */
export function prefixesTextStart({ pre_tokenizer: step }: TokenizerFile): boolean {
  const steps = pretokenizers.safeParse(step).data?.pretokenizers ?? [step]
  return steps.some((each) => metaspace.safeParse(each).success)
}

const NEVER = { prepend_scheme: 'never' }
const quiet = (step: unknown): unknown => (metaspace.safeParse(step).success ? Object.assign({}, step, NEVER) : step)

/** The same tokenizer for pieces of a text: no space goes before them. */
export function withoutStartPrefix(file: TokenizerFile): TokenizerFile {
  const all = pretokenizers.safeParse(file.pre_tokenizer)
  const step = all.success
    ? { ...all.data, pretokenizers: all.data.pretokenizers.map(quiet) }
    : quiet(file.pre_tokenizer)
  return { ...file, pre_tokenizer: step }
}

/** The text with the space that belongs before it. */
export function withStartSpace(text: string): string {
  return text === '' || text.startsWith(' ') || text.startsWith(SPACE_MARK) ? text : ` ${text}`
}
