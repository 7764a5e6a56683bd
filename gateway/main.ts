import type { Server } from 'node:http'
import type { Level } from 'pino'
import { type Address, loadConfig } from '../engine/config/index.js'
import packageInfo from '../package.json' with { type: 'json' }
import { Core } from './core.js'
import type { EngineCommand, ExitInfo } from './engine-client/process.js'
import { openLog } from './log.js'
import { GrpcServer } from './protocols/grpc/server.js'
import type { Services } from './services.js'
import { loadTextModel } from './text/model-text.js'

/** The program's version. */
export const VERSION: string = packageInfo.version

/** What `serve` is asked to do. */
export interface ServeOptions {
  configFile: string
  engine: EngineCommand
  logLevel: Level | 'silent'
  logPrompts: boolean
}

/** Requests in flight get this long to end when the gateway is asked to stop, milliseconds. */
const DRAIN_MS = 30_000
const ENGINE_WAIT_MS = 5000
