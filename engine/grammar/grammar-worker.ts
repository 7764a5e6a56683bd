/**
 * One grammar at work, in a thread of its own: a grammar is a program from a client, and only a thread that does nothing
 * else can be stopped whatever it does. Speaks with grammar-home.ts.
 */
import { getHeapStatistics } from 'node:v8'
import { parentPort, workerData } from 'node:worker_threads'
import type { Grammar } from '../../proto/gen/edgeshift/v1/grammar.js'
import { GrammarKeeper, type MaskAnswer, type MaskRequest, reasonOf } from './keeper.js'
import { TokenTrie } from './token-trie.js'
import { type GrammarVocabulary, vocabularyBytes } from './vocabulary.js'

/** What the thread is asked; what has no id is not answered. */
export type HomeRequest =
  | { type: 'compile'; id: number; grammar: Grammar }
  | { type: 'masks'; id: number; requests: readonly MaskRequest[] }
  | { type: 'forget'; sequence: number }

/** Answer to the request of that id. */
export interface HomeReply {
  id: number
  masks?: MaskAnswer
  /** Why there are none, or why the grammar is refused. */
  error?: string
  /** What the thread's heap and its buffers take. */
  bytes: number
}

// oxlint-disable-next-line typescript/no-unsafe-type-assertion -- grammar-home.ts starts this thread
const trie = new TokenTrie(vocabularyBytes(workerData as GrammarVocabulary))
let keeper: GrammarKeeper | undefined

parentPort?.on('message', (request: HomeRequest) => {
  if (request.type === 'forget') return keeper?.forget(request.sequence)
  const reply = answer(request)
  return parentPort?.postMessage(reply, reply.masks ? [reply.masks.bits.buffer] : [])
})

function answer(request: Exclude<HomeRequest, { type: 'forget' }>): HomeReply {
  const { id } = request
  try {
    if (request.type === 'masks')
      return { id, ...(keeper && { masks: keeper.answer(request.requests) }), bytes: heldBytes() }
    keeper = undefined
    keeper = new GrammarKeeper(request.grammar, trie)
    return { id, bytes: heldBytes() }
  } catch (error) {
    return { id, error: reasonOf(error), bytes: heldBytes() }
  }
}

function heldBytes(): number {
  const { total_heap_size: heap, external_memory: external } = getHeapStatistics()
  return heap + external
}
