import { existsSync, statSync, unlinkSync } from 'node:fs'
import { connect } from 'node:net'
import { Server, ServerCredentials } from '@grpc/grpc-js'
import { MAX_REQUEST_BYTES } from '../config/index.js'
import { EngineService as definition, type EngineServer } from '../../proto/gen/edgeshift/v1/engine.js'

/** A listening server. */
export interface Listener {
  /** Stops listening, gives calls that are ending `graceMs` to be written out, removes the socket file. */
  close(graceMs?: number): Promise<void>
}

/**
 * Serves on a unix socket that only this user can open. A socket file without a listener is replaced; rejects when
 * another process answers on it or the path cannot be used.
 */
export async function listen(socketPath: string, handlers: EngineServer): Promise<Listener> {
  await removeStale(socketPath)
  const server = new Server({ 'grpc.max_receive_message_length': MAX_REQUEST_BYTES })
  server.addService(definition, handlers)
  const umask = process.umask(0o077)
  try {
    await bind(server, `unix:${socketPath}`)
  } finally {
    process.umask(umask)
  }
  return {
    close: async (graceMs = 0) => {
      if (graceMs > 0) await shutDown(server, graceMs)
      server.forceShutdown()
      if (existsSync(socketPath)) unlinkSync(socketPath)
    },
  }
}

/** Resolves when every call has ended, or after `graceMs`. */
function shutDown(server: Server, graceMs: number): Promise<void> {
  return new Promise((resolve) => {
    const timer = setTimeout(resolve, graceMs)
    server.tryShutdown(() => {
      clearTimeout(timer)
      resolve()
    })
  })
}

function bind(server: Server, address: string): Promise<void> {
  return new Promise((resolve, reject) => {
    server.bindAsync(address, ServerCredentials.createInsecure(), (error) => {
      if (error) reject(error)
      else resolve()
    })
  })
}

async function removeStale(socketPath: string): Promise<void> {
  if (!existsSync(socketPath)) return
  if (!statSync(socketPath).isSocket()) throw new Error(`${socketPath} exists and is not a socket`)
  if (await answers(socketPath)) throw new Error(`another process serves on ${socketPath}`)
  unlinkSync(socketPath)
}

function answers(socketPath: string): Promise<boolean> {
  return new Promise((resolve, reject) => {
    const socket = connect(socketPath)
    socket.once('connect', () => {
      socket.destroy()
      resolve(true)
    })
    socket.once('error', (error: NodeJS.ErrnoException) => {
      if (error.code === 'ECONNREFUSED' || error.code === 'ENOENT') resolve(false)
      else reject(error)
    })
  })
}
