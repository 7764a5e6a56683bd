#!/usr/bin/env node
import { spawn } from 'node:child_process'
import { constants } from 'node:os'
import { fileURLToPath } from 'node:url'
import { Command, Option } from 'commander'
import { ConfigError, loadConfig } from '../../engine/config/index.js'
import type { EngineCommand } from '../engine-client/process.js'
import { formatAddress, ListenError } from '../listeners.js'
import { Gateway, VERSION } from '../main.js'
import { KeyEditError } from '../keys/edit.js'
import { loadKeyFile } from '../keys/watch.js'
import { loadTlsPair } from '../tls.js'
import { formatBanner } from './banner.js'
import { keysCommand } from './keys.js'
import { AdminError, modelsCommand } from './models.js'
import { routeCommand, RouteError } from './route.js'

/** A program beside this file: bundled, or from sources when this runs from sources. */
function besides(bundle: string, source: string): string {
  return fileURLToPath(new URL(import.meta.url.endsWith('.js') ? bundle : source, import.meta.url))
}

/** How to run a program of ours. */
function nodeCommand(file: string): EngineCommand {
  const loader = file.endsWith('.ts') ? ['--import', import.meta.resolve('tsx')] : []
  return { command: process.execPath, args: [...loader, file] }
}

/** Failures that a person can act on. */
const FOR_PEOPLE = [ConfigError, ListenError, KeyEditError, AdminError, RouteError]

/** Prints one line for failures that a person can act on; anything else keeps its stack. Ends the process. */
function fail(error: unknown): never {
  const known = error instanceof Error && FOR_PEOPLE.some((kind) => error instanceof kind)
  console.error(known ? error.message : error)
  process.exit(1)
}

interface ServeFlags {
  config: string
  engine?: string
  logLevel: 'silent' | 'fatal' | 'error' | 'warn' | 'info' | 'debug' | 'trace'
}

async function serve({ config, engine, logLevel }: ServeFlags): Promise<void> {
  const program = engine ?? besides('./engine.js', '../../engine/main.ts')
  const gateway = await Gateway.start({ configFile: config, engine: nodeCommand(program), logLevel })
  stopOnSignal(gateway)
  const failed = await gateway.settled()
  if (failed) {
    console.error(`the engine does not start:\n${failed.lastLines.join('\n')}`)
    await gateway.stop(0)
    process.exit(1)
  }
  const { http, grpc } = gateway.addresses
  const { engineStatus: status, secure, services } = gateway
  const addresses = { http: formatAddress(http), grpc: formatAddress(grpc) }
  console.log(
    formatBanner({
      version: VERSION,
      ...addresses,
      models: services.models.list(),
      secure,
      keyed: services.access.keyed,
      status,
    }),
  )
}

/** The first signal drains, the second one ends the process at once. */
function stopOnSignal(gateway: Gateway): void {
  let stopping = false
  const stop = (): void => {
    if (stopping) process.exit(1)
    stopping = true
    gateway.stop().then(() => process.exit(0), fail)
  }
  process.on('SIGTERM', stop)
  process.on('SIGINT', stop)
}

function check({ config }: { config: string }): void {
  const { models, server } = loadConfig(config)
  if (server.tls_cert !== undefined && server.tls_key !== undefined) {
    loadTlsPair({ cert: server.tls_cert, key: server.tls_key })
    console.log(`${server.tls_cert}: valid, with its key`)
  }
  if (server.api_keys_file !== undefined) {
    const { entries, remarks } = loadKeyFile(
      server.api_keys_file,
      models.map(({ id }) => id),
    )
    console.log(`${server.api_keys_file}: valid, ${entries.length} keys`)
    for (const remark of remarks) console.error(remark)
  }
  console.log(`${config}: valid, ${models.map(({ id, variants }) => `${id} (${variants.length} rungs)`).join(', ')}`)
}

/** Runs a command that needs the engine's side in a process of its own, and ends as it ends. */
function runTool(args: readonly string[]): void {
  const { command, args: start } = nodeCommand(besides('./tools.js', '../../engine/tools/main.ts'))
  const tool = spawn(command, [...start, ...args], { stdio: 'inherit' })
  // The terminal sends its signals to both; the tool ends in its own way.
  process.on('SIGINT', () => undefined)
  // Other senders name this process alone.
  process.on('SIGTERM', () => tool.kill('SIGTERM'))
  tool.on('error', fail)
  tool.on('close', (code, signal) => process.exit(code ?? 128 + (signal === null ? 0 : constants.signals[signal])))
}

/** This program, for a tool that serves. */
const SELF = fileURLToPath(import.meta.url)

const TOOLS: readonly [name: string, description: string][] = [
  ['inspect', 'describe a model file or folder without loading it'],
  ['verify', 'check the hashes and values of a model'],
  ['pull', 'download a model into the models folder'],
  ['bench', 'measure the speed of a model, or of a named shape with random weights'],
]

const configOption = (): Option => new Option('--config <file>', 'models.yaml to use').default('models.yaml')

const program = new Command('edgeshift').version(VERSION).description('On-prem gateway and engine for language models')
program
  .command('serve')
  .description('serve the models of a configuration')
  .addOption(configOption())
  .addOption(
    new Option('--log-level <level>', 'least severe lines to log (JSON lines on standard error)')
      .choices(['silent', 'fatal', 'error', 'warn', 'info', 'debug', 'trace'])
      .default('info'),
  )
  .addOption(new Option('--engine <program>', 'engine program to run instead of the built one (tests)').hideHelp())
  .action((flags: ServeFlags) => serve(flags).catch(fail))
program
  .command('check')
  .description('check a configuration and exit')
  .addOption(configOption())
  .action((flags: { config: string }) => {
    try {
      check(flags)
    } catch (error) {
      fail(error)
    }
  })
program.addCommand(keysCommand(configOption, fail))
program.addCommand(routeCommand(fail))
program.addCommand(modelsCommand(configOption, fail))
for (const [name, description] of TOOLS) {
  program
    .command(name)
    .description(description)
    .argument('[args...]')
    .helpOption(false)
    .allowUnknownOption()
    .action((args: string[]) => runTool(name === 'bench' ? [name, '--cli', SELF, ...args] : [name, ...args]))
}
await program.parseAsync()
