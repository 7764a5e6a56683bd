/** Certificate and private key from files, read again when they change. */
import { createPrivateKey, type KeyObject, X509Certificate } from 'node:crypto'
import { unwatchFile, watchFile } from 'node:fs'
import { createSecureContext, type SecureContextOptions } from 'node:tls'
import { ServerCredentials } from '@grpc/grpc-js'
import type { Logger } from 'pino'
import { ConfigError, readText } from '../engine/config/index.js'

/** How soon a renewed certificate is seen. */
const POLL_MS = 2000

/** Where the two are, as PEM; the certificate first, then those of its chain. */
export interface TlsPaths {
  cert: string
  key: string
}

/** A certificate and its key, checked against each other. */
export type TlsPair = { cert: string; key: string }

/** Reads the pair. Throws ConfigError when a file is missing, unreadable or cut, or they do not belong together. */
export function loadTlsPair(paths: TlsPaths): TlsPair {
  const pair = { cert: readText(paths.cert), key: readText(paths.key) }
  const certificate = parsed(paths.cert, 'a certificate in PEM form', () => new X509Certificate(pair.cert))
  const key = parsed(paths.key, 'a private key in PEM form without a passphrase', () => createPrivateKey(pair.key))
  checkPair(paths, certificate, key)
  checkChain(paths, pair)
  return pair
}

function checkPair({ cert, key }: TlsPaths, certificate: X509Certificate, privateKey: KeyObject): void {
  if (!certificate.checkPrivateKey(privateKey)) throw fault(key, `not the private key of the certificate in ${cert}`)
}

/** As the servers will read it: all of it, while only the first certificate was parsed before. */
function checkChain({ cert }: TlsPaths, pair: TlsPair): void {
  try {
    createSecureContext(pair)
  } catch (error) {
    throw fault(cert, `not a chain that TLS can use: ${error instanceof Error ? error.message : String(error)}`)
  }
}

function parsed<T>(file: string, expected: string, parse: () => T): T {
  try {
    return parse()
  } catch {
    throw fault(file, `not ${expected}`)
  }
}

function fault(file: string, message: string): ConfigError {
  return new ConfigError(file, [{ line: 0, column: 0, path: '', message }])
}

/** TLS of the listeners while their files change: new connections get the newest pair that is whole. Close it. */
export class Tls {
  #pair: TlsPair
  readonly #listeners: ((pair: TlsPair) => void)[] = []

  /** Throws as loadTlsPair. */
  constructor(
    private readonly paths: TlsPaths,
    private readonly log: Logger,
    pollMs = POLL_MS,
  ) {
    this.#pair = loadTlsPair(paths)
    for (const file of [paths.cert, paths.key]) watchFile(file, { interval: pollMs, persistent: false }, this.#reload)
  }

  get pair(): TlsPair {
    return this.#pair
  }

  /** Calls `listener` with every later pair. */
  onChange(listener: (pair: TlsPair) => void): void {
    this.#listeners.push(listener)
  }

  /** For the gRPC server; follows the files. */
  grpcCredentials(): ServerCredentials {
    const credentials = new ChangingCredentials(this.#pair)
    this.onChange((pair) => credentials.change(pair))
    return credentials
  }

  close(): void {
    for (const file of [this.paths.cert, this.paths.key]) unwatchFile(file, this.#reload)
  }

  /** Of two files the first that is replaced does not fit the other yet; the second one's change puts it right. */
  readonly #reload = (): void => {
    try {
      this.#pair = loadTlsPair(this.paths)
    } catch (error) {
      this.log.error({ problem: error instanceof Error ? error.message : String(error) }, 'certificate not changed')
      return
    }
    for (const listener of this.#listeners) listener(this.#pair)
    this.log.info({ until: new X509Certificate(this.#pair.cert).validTo }, 'certificate read again')
  }
}

/** Server credentials whose pair may be replaced. */
class ChangingCredentials extends ServerCredentials {
  constructor(pair: SecureContextOptions) {
    super({}, pair)
  }

  change(pair: SecureContextOptions): void {
    this.updateSecureContextOptions(pair)
  }

  override _equals(other: ServerCredentials): boolean {
    return this === other
  }
}
