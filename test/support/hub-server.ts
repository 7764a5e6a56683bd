/** A hub for tests: the endpoints that a download uses, with faults on demand. */
import { createHash } from 'node:crypto'
import { createServer, type IncomingMessage, type Server, type ServerResponse } from 'node:http'
import type { AddressInfo } from 'node:net'

export const COMMIT = 'a'.repeat(40)

/** Called for every download; true when it has dealt with the answer itself. */
export type Fault = (request: IncomingMessage, response: ServerResponse, content: Buffer) => boolean

/** A running hub with one repository. */
export interface TestHub {
  url: string
  /** Byte ranges asked for, by file; '' for a whole one. */
  asked: [file: string, range: string][]
  close: () => Promise<void>
}

const sha256 = (content: Buffer) => createHash('sha256').update(content).digest('hex')
const gitHash = (content: Buffer) => createHash('sha1').update(`blob ${content.length}\0`).update(content).digest('hex')

/** Serves `files` as the repository `name`. `listed` replaces what the listing says of a file. */
export async function startHub(
  name: string,
  files: Record<string, Buffer>,
  { fault = () => false, listed = {} }: { fault?: Fault; listed?: Record<string, object> } = {},
): Promise<TestHub> {
  const asked: [string, string][] = []
  const server = createServer((request, response) => {
    const url = new URL(request.url ?? '/', 'http://hub')
    const path = decodeURIComponent(url.pathname)
    const json = (value: unknown): void => {
      response.setHeader('content-type', 'application/json')
      response.end(JSON.stringify(value))
    }
    if (path === `/api/models/${name}/revision/main`)
      return json({ _id: '1', id: name, modelId: name, sha: COMMIT, private: false, downloads: 0, likes: 0 })
    if (path === `/api/models/${name}/tree/${COMMIT}` || path === `/api/models/${name}/tree/${COMMIT}/`)
      return json(Object.entries(files).map(([file, content]) => Object.assign(entry(file, content), listed[file])))
    const file = path.slice(`/${name}/resolve/${COMMIT}/`.length)
    const content = path.startsWith(`/${name}/resolve/${COMMIT}/`) ? files[file] : undefined
    if (content === undefined) {
      response.statusCode = 404
      return json({ error: 'Repository not found' })
    }
    asked.push([file, request.headers.range ?? ''])
    if (!fault(request, response, content)) sendRange(request, response, content)
  })
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve))
  const { port } = server.address() as AddressInfo
  return { url: `http://127.0.0.1:${port}`, asked, close: () => closeServer(server) }
}

function entry(path: string, content: Buffer): object {
  const small = { type: 'file', oid: gitHash(content), size: content.length, path }
  return /\.(safetensors|gguf)$/.test(path)
    ? { ...small, lfs: { oid: sha256(content), size: content.length, pointerSize: 130 } }
    : small
}

/** The content from the range's start on. */
export function sendRange(request: IncomingMessage, response: ServerResponse, content: Buffer): void {
  const start = Number(/^bytes=(\d+)-$/.exec(request.headers.range ?? '')?.[1] ?? 0)
  if (start > 0) {
    response.statusCode = 206
    response.setHeader('content-range', `bytes ${start}-${content.length - 1}/${content.length}`)
  }
  response.end(content.subarray(start))
}

/** Sends `bytes` from the range's start on and cuts the connection when some of them have been received. */
export function cutAfter(bytes: number, received: () => Promise<void>): Fault {
  return (request, response, content) => {
    const start = Number(/^bytes=(\d+)-$/.exec(request.headers.range ?? '')?.[1] ?? 0)
    if (start + bytes >= content.length) return false
    if (start > 0) {
      response.statusCode = 206
      response.setHeader('content-range', `bytes ${start}-${content.length - 1}/${content.length}`)
    }
    response.setHeader('content-length', content.length - start)
    void received().then(() => response.destroy())
    response.write(content.subarray(start, start + bytes))
    return true
  }
}

function closeServer(server: Server): Promise<void> {
  server.closeAllConnections()
  return new Promise((resolve) => server.close(() => resolve()))
}
