/** TLS on every listener, by real clients that trust one certificate only. */
import { appendFileSync, copyFileSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { Agent, request } from 'node:https'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { credentials, type ServiceError } from '@grpc/grpc-js'
import { pino } from 'pino'
import { afterEach, beforeEach, describe, expect, it } from 'vitest'
import { WebSocket } from 'ws'
import { Listeners } from '../../gateway/listeners.js'
import { loadTlsPair, Tls } from '../../gateway/tls.js'
import { GatewayClient, type ListModelsResponse } from '../../proto/gen/edgeshift/v1/gateway.js'
import { fakeServices } from '../support/fake-services.js'
import { eventually } from '../support/gateway-process.js'
import { ChatPeer, textOf } from '../support/websocket-clients.js'

const fixture = (name: string): string => fileURLToPath(new URL(`../fixtures/tls/${name}.pem`, import.meta.url))
const ca = { first: readFileSync(fixture('first-cert')), second: readFileSync(fixture('second-cert')) }
type Name = keyof typeof ca

let folder: string
let paths: { cert: string; key: string }
const install = (name: Name, parts: readonly ('cert' | 'key')[] = ['cert', 'key']): void => {
  for (const part of parts) copyFileSync(fixture(`${name}-${part}`), paths[part])
}

/** The first pair with a second certificate of which a part is missing. */
const cutChain = (): void => {
  install('first')
  appendFileSync(paths.cert, readFileSync(paths.cert).subarray(0, 300))
}

beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), 'es-tls-'))
  paths = { cert: join(folder, 'cert.pem'), key: join(folder, 'key.pem') }
  install('first')
})
afterEach(() => rmSync(folder, { recursive: true }))

describe('a pair of files', () => {
  it.each<[string, () => void, RegExp]>([
    ['is missing', () => rmSync(paths.cert), /cert\.pem: no such file/],
    ['has no certificate', () => writeFileSync(paths.cert, 'x'), /cert\.pem: not a certificate in PEM form/],
    ['has no key', () => writeFileSync(paths.key, 'x'), /key\.pem: not a private key in PEM form/],
    ['has a chain that is cut', cutChain, /cert\.pem: not a chain that TLS can use: .*PEM/],
    [
      'does not match',
      () => install('second', ['key']),
      /key\.pem: not the private key of the certificate in .*cert\.pem/,
    ],
  ])('that %s is refused with the file and the reason', (_name, spoil, message) => {
    spoil()
    expect(() => loadTlsPair(paths)).toThrow(message)
  })
})

describe('listeners with TLS', () => {
  let tls: Tls
  let listeners: Listeners
  const problems: string[] = []
  beforeEach(async () => {
    problems.length = 0
    const log = pino({ level: 'error' }, { write: (line: string) => void problems.push(line) })
    tls = new Tls(paths, log, 20)
    const any = { host: '127.0.0.1', port: 0 }
    listeners = await Listeners.open(fakeServices(), any, any, tls)
  })
  afterEach(async () => {
    tls.close()
    await listeners.close(0)
  })

  /** The status of /health, or the code of the TLS failure. */
  const https = (trusted: Name): Promise<number | string | undefined> =>
    new Promise((resolve) => {
      const agent = new Agent({ ca: ca[trusted], keepAlive: false, maxCachedSessions: 0 })
      const options = { host: '127.0.0.1', port: listeners.http.port, path: '/health', agent }
      const sent = request(options, (response) => resolve(response.resume().statusCode))
      sent.on('error', (error: NodeJS.ErrnoException) => resolve(error.code)).end()
    })
  const grpc = (trusted: Name): Promise<ListModelsResponse | ServiceError> =>
    new Promise((resolve) => {
      const client = new GatewayClient(`127.0.0.1:${listeners.grpc.port}`, credentials.createSsl(ca[trusted]))
      client.listModels({}, (error, value) => {
        client.close()
        resolve(error ?? value)
      })
    })

  it('serve HTTP, WebSocket and gRPC to who trusts the certificate, and nobody in clear text', async () => {
    expect(await https('first')).toBe(200)
    expect(await https('second')).toBe('DEPTH_ZERO_SELF_SIGNED_CERT')
    expect(await grpc('first')).toHaveProperty('models.length', 2)
    const url = `wss://127.0.0.1:${listeners.http.port}/v1/chat/ws`
    const peer = new ChatPeer(new WebSocket(url, { ca: ca.first }))
    await peer.opened
    peer.send({ type: 'chat', id: 'a', model: 'fake', messages: [{ role: 'user', content: 'hi' }] })
    expect(textOf(await peer.whole('a'))).toBe('Hello world')
    peer.socket.close()
    await expect(fetch(`http://127.0.0.1:${listeners.http.port}/health`)).rejects.toThrow('fetch failed')
  })

  it('take a renewed pair for new connections, and keep the old one until both files fit', async () => {
    install('second', ['cert'])
    await eventually(() => problems.some((line) => line.includes('not the private key')), 'half a pair is refused')
    expect(await https('first')).toBe(200)
    install('second', ['key'])
    await eventually(() => tls.pair.cert === ca.second.toString(), 'the whole pair is taken')
    expect(await https('second')).toBe(200)
    expect(await https('first')).toBe('DEPTH_ZERO_SELF_SIGNED_CERT')
    expect(await grpc('second')).toHaveProperty('models.length', 2)
  })

  it('keep the old pair when the chain of the new one is cut', async () => {
    cutChain()
    await eventually(() => problems.some((line) => line.includes('not a chain')), 'the cut chain is refused')
    expect(await https('first')).toBe(200)
    expect(await grpc('first')).toHaveProperty('models.length', 2)
    install('second')
    await eventually(() => tls.pair.cert === ca.second.toString(), 'the next whole pair is taken')
    expect(await https('second')).toBe(200)
  })
})
