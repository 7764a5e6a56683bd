/** HTTP as bytes on a socket, for what a well-behaved client never sends. */
import { once } from 'node:events'
import { connect, type Socket } from 'node:net'

/** A connection whose received bytes are kept. */
export interface RawConnection {
  socket: Socket
  received: () => string
  /** Resolves with all received so far as soon as it matches. */
  until: (pattern: RegExp) => Promise<string>
  /** Resolves with everything when the server has closed. */
  closed: Promise<string>
}

/** Connects to a local port. */
export async function rawConnection(port: number): Promise<RawConnection> {
  const socket = connect(port, '127.0.0.1')
  let text = ''
  const waiting = new Set<() => void>()
  socket.setEncoding('utf8')
  socket.on('data', (chunk: string) => {
    text += chunk
    for (const look of waiting) look()
  })
  socket.on('error', () => undefined)
  const closed = once(socket, 'close').then(() => text)
  await once(socket, 'connect')
  const until = (pattern: RegExp): Promise<string> =>
    new Promise((resolve, reject) => {
      const look = (): void => {
        if (!pattern.test(text)) return
        waiting.delete(look)
        resolve(text)
      }
      waiting.add(look)
      socket.once('close', () => reject(new Error(`closed after: ${text}`)))
      look()
    })
  return { socket, received: () => text, until, closed }
}

/** A whole request with a JSON body. */
export function rawPost(path: string, body: string | Buffer, headers: Record<string, string> = {}): Buffer {
  const all = {
    host: 'localhost',
    'content-type': 'application/json',
    'content-length': String(Buffer.byteLength(body)),
    ...headers,
  }
  const lines = Object.entries(all).map(([name, value]) => `${name}: ${value}\r\n`)
  return Buffer.concat([Buffer.from(`POST ${path} HTTP/1.1\r\n${lines.join('')}\r\n`), Buffer.from(body)])
}
