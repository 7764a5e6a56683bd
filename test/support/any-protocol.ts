/** One chat over any protocol, streamed or whole, with the same answer to compare. */
import type OpenAI from 'openai'
import { status as Status } from '@grpc/grpc-js'
import { WebSocket } from 'ws'
import { z } from 'zod'
import { GenerateOptions } from '../../proto/gen/edgeshift/v1/gateway.js'
import type { GatewayProcess } from './gateway-process.js'
import type { Segment } from './ladder-answers.js'
import { collect, GrpcPeer } from './grpc-clients.js'
import { openAiClient } from './openai-scenarios.js'
import { ChatPeer, textOf } from './websocket-clients.js'

const degradedSchema = z.object({ degraded: z.object({ variant: z.string(), replayed_tokens: z.number() }) })

/** What is asked; two of the same give the same text. */
export interface Job {
  content: string
  seed: number
  temperature: number
  frequency_penalty: number
  maxTokens: number
  /** Default: the model with the tag "chat". */
  model?: string
  /** What the answer has to match; one that it cannot match before its end, as end tokens count as any others. */
  guided_regex?: string
}

/** What came of it. */
export interface Answer {
  text: string
  completionTokens: number
  /** `degraded` events; for a whole answer 1 when it says that there was one. */
  degraded: number
  /** What served it at its end; for a stream also what did before, with the tokens told by then. */
  variant: string
  segments: Segment[]
}

/** A grammar for `Job.guided_regex` that no short answer comes to the end of. */
export const SMALL_LETTERS = '([a-z]+[ ,]){100}'

/** Ways to ask: `AnyProtocol.ask` takes them by turns. */
export const WAYS = 5
/** Requests that one socket may have running. */
const PER_SOCKET = 32

/** Clients of one gateway process. Owns their connections: `close` it. */
export class AnyProtocol {
  private readonly grpc: GrpcPeer
  private readonly http: OpenAI
  private readonly peers: ChatPeer[] = []
  private chats = 0

  constructor(private readonly box: GatewayProcess) {
    this.grpc = new GrpcPeer(box.grpcAddress)
    this.http = openAiClient({ url: box.url, model: 'chat' })
  }

  /**
   * Asks one job, by turns over every protocol as a stream and over those that have them as a whole answer. `onNews` is
   * called at every event of a stream. Rejects with the error's code in its message.
   */
  ask(turn: number, job: Job, onNews: () => void): Promise<Answer> {
    switch (turn % WAYS) {
      case 0:
        return this.overHttp(job, onNews)
      case 1:
        return this.overGrpc(job, onNews)
      case 2:
        return this.overWebSocket(job, onNews)
      case 3:
        return this.wholeOverHttp(job)
      default:
        return this.wholeOverGrpc(job)
    }
  }

  close(): void {
    this.grpc.close()
    for (const { socket } of this.peers) socket.close()
  }

  private async overHttp(job: Job, onNews: () => void): Promise<Answer> {
    const stream = await this.http.chat.completions.create({
      ...httpBody(job),
      stream: true,
      stream_options: { include_usage: true },
    })
    const answer: Answer = { text: '', completionTokens: 0, degraded: 0, variant: '', segments: [] }
    for await (const chunk of stream) {
      if (answer.segments.length === 0) answer.segments.push({ variant: chunk.model, from: 0 })
      answer.text += chunk.choices[0]?.delta.content ?? ''
      answer.completionTokens += chunk.usage?.completion_tokens ?? 0
      if ('edgeshift' in chunk) {
        answer.degraded++
        const { degraded } = degradedSchema.parse(chunk.edgeshift)
        answer.segments.push({ variant: degraded.variant, from: degraded.replayed_tokens })
      }
      onNews()
    }
    return { ...answer, variant: answer.segments.at(-1)?.variant ?? '' }
  }

  private async wholeOverHttp(job: Job): Promise<Answer> {
    const { data, response } = await this.http.chat.completions.create(httpBody(job)).withResponse()
    return {
      text: data.choices[0]?.message.content ?? '',
      completionTokens: data.usage?.completion_tokens ?? 0,
      degraded: response.headers.has('x-edgeshift-degraded') ? 1 : 0,
      variant: response.headers.get('x-edgeshift-variant') ?? '',
      segments: [],
    }
  }

  private async overGrpc(job: Job, onNews: () => void): Promise<Answer> {
    const call = this.grpc.client.chatStream(grpcRequest(job))
    call.on('data', onNews)
    const { events, texts, status } = await collect(call)
    if (status.code !== Status.OK) {
      throw new Error(`${status.metadata.get('edgeshift-error-code').join()}: ${status.details}`)
    }
    const last = events.at(-1)?.kind
    const segments = events.flatMap(({ kind }) => {
      if (kind?.$case === 'started') return [{ variant: kind.started.variant, from: 0 }]
      return kind?.$case === 'degraded' ? [{ variant: kind.degraded.variant, from: kind.degraded.replayedTokens }] : []
    })
    return {
      text: texts[0] ?? '',
      completionTokens: last?.$case === 'usage' ? last.usage.completionTokens : 0,
      degraded: events.filter(({ kind }) => kind?.$case === 'degraded').length,
      variant: segments.at(-1)?.variant ?? '',
      segments,
    }
  }

  private async wholeOverGrpc(job: Job): Promise<Answer> {
    const { response } = await this.grpc.chat(grpcRequest(job))
    return {
      text: response.choices[0]?.text ?? '',
      completionTokens: response.usage?.completionTokens ?? 0,
      degraded: response.degraded === '' ? 0 : 1,
      variant: response.variant,
      segments: [],
    }
  }

  private async overWebSocket(
    { content, maxTokens, model = 'chat', ...job }: Job,
    onNews: () => void,
  ): Promise<Answer> {
    const peer = this.peer(onNews)
    await peer.opened
    const id = `chat-${this.chats++}`
    const messages = [{ role: 'user', content }]
    peer.send({ type: 'chat', id, model, messages, max_tokens: maxTokens, ...endless(job), ...job })
    const received = await peer.whole(id)
    const last = received.at(-1)
    if (last?.type === 'error') throw new Error(`${last.error.code}: ${last.error.message}`)
    const segments = received.flatMap((message) => {
      if (message.type === 'started') return [{ variant: message.variant, from: 0 }]
      return message.type === 'degraded' ? [{ variant: message.variant, from: message.replayed_tokens }] : []
    })
    return {
      text: textOf(received),
      completionTokens: last?.type === 'usage' ? last.usage.completion_tokens : 0,
      degraded: received.filter(({ type }) => type === 'degraded').length,
      variant: segments.at(-1)?.variant ?? '',
      segments,
    }
  }

  /** A socket with room: they are filled in order. */
  private peer(onNews: () => void): ChatPeer {
    const place = Math.floor(this.chats / PER_SOCKET)
    const peer = (this.peers[place] ??= new ChatPeer(this.openSocket()))
    peer.socket.addEventListener('message', onNews)
    return peer
  }

  private openSocket(): WebSocket {
    const socket = new WebSocket(`${this.box.url.replace('http', 'ws')}/v1/chat/ws`)
    // One for each round that a test asks.
    socket.setMaxListeners(0)
    return socket
  }
}

function httpBody({ content, maxTokens, model = 'chat', ...job }: Job) {
  const messages: OpenAI.Chat.ChatCompletionMessageParam[] = [{ role: 'user', content }]
  return { model, messages, max_tokens: maxTokens, ...endless(job), ...job }
}

/** With a grammar the end comes where that lets it. */
function endless({ guided_regex: regex }: Pick<Job, 'guided_regex'>): { ignore_eos?: true } {
  return regex === undefined ? { ignore_eos: true } : {}
}

function grpcRequest({ content, maxTokens, seed, temperature, model = 'chat', ...job }: Job) {
  const { frequency_penalty: frequencyPenalty, guided_regex: regex } = job
  const ending = regex === undefined ? { ignoreEos: true } : { grammar: { kind: { $case: 'regex' as const, regex } } }
  const options = GenerateOptions.create({ maxTokens, seed, temperature, frequencyPenalty, ...ending })
  return { model, messages: [{ role: 'user', content, name: '' }], options }
}
