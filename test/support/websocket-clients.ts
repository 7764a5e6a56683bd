/** WebSocket clients for tests, over any class of the browser's shape (ws, undici). Work on any stack. */
import { type ServerMessage, serverMessageSchema } from '../../gateway/protocols/websocket/messages.js'

/** The part of the browser's WebSocket that chats need. */
export interface BrowserSocket {
  send(data: string): void
  close(code?: number, reason?: string): void
  addEventListener(type: 'open' | 'error', listener: () => void): void
  addEventListener(type: 'message', listener: (event: { data: unknown }) => void): void
  addEventListener(type: 'close', listener: (event: { code: number; reason: string }) => void): void
}

/** A message of the server that belongs to a request. */
export type Named = ServerMessage & { id?: string | undefined }

/** One chat socket: keeps what it receives, checks every message against the published schema. */
export class ChatPeer {
  readonly received: Named[] = []
  readonly opened: Promise<void>
  readonly closed: Promise<{ code: number; reason: string }>
  private readonly looks = new Set<() => void>()

  constructor(readonly socket: BrowserSocket) {
    this.opened = new Promise((resolve, reject) => {
      socket.addEventListener('open', resolve)
      socket.addEventListener('error', () => reject(new Error('the socket did not open')))
    })
    this.opened.catch(() => undefined)
    this.closed = new Promise((resolve) => {
      socket.addEventListener('close', ({ code, reason }) => resolve({ code, reason }))
    })
    socket.addEventListener('message', ({ data }) => {
      this.received.push(serverMessageSchema.parse(JSON.parse(String(data))))
      for (const look of this.looks) look()
    })
  }

  send(message: object): void {
    this.socket.send(JSON.stringify(message))
  }

  /** Resolves to the first message received, past or future, that `matches`. */
  find(matches: (message: Named) => boolean): Promise<Named> {
    return new Promise((resolve) => {
      const look = (): void => {
        const found = this.received.find(matches)
        if (!found) return
        this.looks.delete(look)
        resolve(found)
      }
      this.looks.add(look)
      look()
    })
  }

  /** Resolves when request `id` has ended, to all of its messages. */
  async whole(id: string): Promise<Named[]> {
    const ends = (message: Named): boolean => ['usage', 'error', 'route'].includes(message.type)
    await this.find((message) => message.id === id && ends(message))
    return this.received.filter((message) => message.id === id)
  }
}

/** The text of choice `index` in a request's messages. */
export function textOf(messages: readonly Named[], index = 0): string {
  return messages.map((it) => (it.type === 'delta' && it.index === index ? it.text : '')).join('')
}

/** One chat as a scenario: the same shape as the other protocols' so that texts can be compared. */
export async function chatOverWebSocket(
  peer: ChatPeer,
  model: string,
  content: string,
  options: object = {},
): Promise<{ text: string; variant: string; completionTokens: number }> {
  await peer.opened
  const id = `chat-${peer.received.length}`
  peer.send({ type: 'chat', id, model, messages: [{ role: 'user', content }], ...options })
  const messages = await peer.whole(id)
  const last = messages.at(-1)
  if (last?.type === 'error') throw new Error(`${last.error.code}: ${last.error.message}`)
  const started = messages.find((message) => message.type === 'started')
  return {
    text: textOf(messages),
    variant: started?.variant ?? '',
    completionTokens: last?.type === 'usage' ? last.usage.completion_tokens : 0,
  }
}
