/** A keep-alive HTTP/1.1 client that costs little beside what it measures: prebuilt requests, hardly any parsing. */
import { connect, type Socket } from 'node:net'

/** A POST with a JSON body, as bytes. */
export function postBytes(path: string, body: unknown, headers: Record<string, string> = {}): Buffer {
  const json = JSON.stringify(body)
  const extra = Object.entries(headers).map(([name, value]) => `${name}: ${value}\r\n`)
  const head = `POST ${path} HTTP/1.1\r\nhost: bench\r\ncontent-type: application/json\r\n${extra.join('')}`
  return Buffer.from(`${head}content-length: ${Buffer.byteLength(json)}\r\n\r\n${json}`)
}

/** One connection, one request at a time. */
export class RawConnection {
  private text = ''
  private onData: (() => boolean) | undefined
  private done: { resolve: () => void; reject: (error: Error) => void } | undefined

  private constructor(private readonly socket: Socket) {
    socket.setNoDelay(true)
    socket.setEncoding('latin1')
    socket.on('data', (chunk: string) => {
      this.text += chunk
      if (!this.onData?.()) return
      this.onData = undefined
      this.done?.resolve()
    })
    socket.on('error', (error) => this.done?.reject(error))
    socket.on('close', () => this.done?.reject(new Error('connection closed')))
  }

  static open(port: number): Promise<RawConnection> {
    return new Promise((resolve, reject) => {
      const socket = connect(port, '127.0.0.1', () => resolve(new RawConnection(socket)))
      socket.once('error', reject)
    })
  }

  /** Sends a request; resolves with the answer, headers and all, once its content-length is complete. */
  async whole(request: Buffer): Promise<string> {
    let end = -1
    await this.exchange(request, () => {
      if (end < 0) {
        const head = this.text.indexOf('\r\n\r\n')
        if (head < 0) return false
        const length = /content-length: (\d+)/i.exec(this.text)?.[1]
        end = length === undefined ? Number.POSITIVE_INFINITY : head + 4 + Number(length)
      }
      return this.text.length >= end || (end === Number.POSITIVE_INFINITY && this.text.endsWith('0\r\n\r\n'))
    })
    return this.text
  }

  /** Sends a request for a stream; calls `onFirst` when `mark` is seen, resolves at the end of the chunked body. */
  async stream(request: Buffer, mark: string, onFirst: () => void): Promise<void> {
    let seen = false
    await this.exchange(request, () => {
      if (!seen && this.text.includes(mark)) {
        seen = true
        onFirst()
      }
      return this.text.endsWith('0\r\n\r\n')
    })
  }

  close(): void {
    this.done = undefined
    this.socket.destroy()
  }

  private exchange(request: Buffer, onData: () => boolean): Promise<void> {
    this.text = ''
    this.onData = onData
    return new Promise((resolve, reject) => {
      this.done = { resolve, reject }
      this.socket.write(request)
    })
  }
}
