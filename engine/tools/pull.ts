/**
 * What `edgeshift pull` does: downloads a model's files beside its final folder, checks every hash, and moves the
 * folder to its place when it is whole. A download that was cut goes on where it stopped, in this run or the next.
 */
import { createHash, type Hash } from 'node:crypto'
import { createReadStream, existsSync } from 'node:fs'
import { mkdir, open, rename, rm, stat, statfs, writeFile } from 'node:fs/promises'
import { dirname, join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { checkName, findModel, type Hub, type HubFile, type HubModel, openFile, PullError } from './hub.js'
import { selectFiles } from './select.js'
import { formatBytes } from './units.js'

/** Attempts in a row that may bring not one byte. */
const MAX_ATTEMPTS = 5
/** Left free on the disk. */
const RESERVE_BYTES = 512 * 2 ** 20
/** A connection that is silent for so long is given up. */
const SILENCE_MS = 30_000

/** What to download and where. */
export interface PullRequest {
  hub: Hub
  name: string
  revision: string
  /** The models folder. */
  root: string
  /** Most bytes that the model's files may have. */
  maxBytes: number
  /** Chooses one .gguf by a part of its name. */
  gguf: string | undefined
  /** Milliseconds before attempt n (from 1) after one that brought nothing. */
  retryDelay: (attempt: number) => number
  /** Bytes on disk and in all. */
  progress: (done: number, total: number, file: string) => void
  signal: AbortSignal
}

/** Downloads a model; gives its folder. Rejects with PullError for what a person can act on. */
export async function pullModel(request: PullRequest): Promise<string> {
  checkName(request.name)
  const target = join(request.root, request.name)
  if (existsSync(target)) throw new PullError(`${target} is there already; edgeshift verify ${target} checks it`)
  const model = await findModel(request.hub, request.name, request.revision)
  const files = selectFiles(model.files, request.gguf)
  const staging = join(dirname(target), `.${request.name.split('/').at(-1)}.${model.commit.slice(0, 12)}.partial`)
  await mkdir(staging, { recursive: true })
  await checkSpace(request, files, staging)
  const total = sumOf(files)
  let done = 0
  for (const file of files) {
    await downloadFile(request, model, file, staging, (bytes) => request.progress(done + bytes, total, file.name))
    done += file.bytes
  }
  await rename(staging, target)
  return target
}

function sumOf(files: readonly HubFile[]): number {
  return files.reduce((sum, { bytes }) => sum + bytes, 0)
}

/** Before the first byte: the whole model against the budget, what is still to come against the disk. */
async function checkSpace({ name, maxBytes }: PullRequest, files: readonly HubFile[], staging: string): Promise<void> {
  const total = sumOf(files)
  if (total > maxBytes)
    throw new PullError(`${name} has ${formatBytes(total)}; the budget is ${formatBytes(maxBytes)} (--max-gb)`)
  const present = await Promise.all(
    files.map(async (file) => (await sizeOf(join(staging, file.name))) + (await sizeOf(partOf(staging, file)))),
  )
  const missing = total - present.reduce((sum, bytes) => sum + bytes, 0)
  const { bavail, bsize } = await statfs(staging)
  const free = bavail * bsize - RESERVE_BYTES
  if (missing > free)
    throw new PullError(`${name} needs ${formatBytes(missing)} more; ${formatBytes(Math.max(0, free))} are free`)
}

async function sizeOf(file: string): Promise<number> {
  return (await stat(file).catch(() => undefined))?.size ?? 0
}

function partOf(staging: string, file: HubFile): string {
  return join(staging, `${file.name}.part`)
}

async function downloadFile(
  request: PullRequest,
  model: HubModel,
  file: HubFile,
  staging: string,
  progress: (bytes: number) => void,
): Promise<void> {
  const target = join(staging, file.name)
  if (existsSync(target)) return progress(file.bytes)
  const part = partOf(staging, file)
  for (let attempt = 1; (await sizeOf(part)) < file.bytes || file.bytes === 0; attempt++) {
    const before = await sizeOf(part)
    const failure = await attemptDownload(request, model, file, part, progress).catch((error: unknown) => error)
    request.signal.throwIfAborted()
    const after = await sizeOf(part)
    if (failure === undefined && after === file.bytes) break
    if (failure instanceof PullError && !isOutage(failure)) throw failure
    if (after > before) attempt = 0
    if (attempt === MAX_ATTEMPTS) throw asPullError(file, after, failure)
    await sleep(request.retryDelay(attempt), undefined, { signal: request.signal })
  }
  await checkHash(part, file)
  await writeMetadata(staging, model, file)
  await rename(part, target)
}

/** The hub could not be reached: the next attempt may be luckier. */
function isOutage(failure: PullError): boolean {
  return failure.cause !== undefined
}

function asPullError(file: HubFile, bytes: number, failure: unknown): PullError {
  const cause = failure instanceof Error && failure.cause instanceof Error ? failure.cause : failure
  const reason = cause instanceof Error ? cause.message : 'the connection ends early'
  const state = `${formatBytes(bytes)} of ${formatBytes(file.bytes)} are kept; the next pull goes on from there`
  return new PullError(`${file.name}: ${reason}; ${state}`, { cause: failure })
}

/** Appends what one connection brings. Rejects with whatever cut it. */
async function attemptDownload(
  { hub, signal }: PullRequest,
  model: HubModel,
  file: HubFile,
  part: string,
  progress: (bytes: number) => void,
): Promise<void> {
  const silence = new AbortController()
  const timer = setTimeout(() => silence.abort(new Error(`${SILENCE_MS / 1000} s of silence`)), SILENCE_MS)
  try {
    const either = AbortSignal.any([signal, silence.signal])
    const { start, body } = await openFile(hub, model, file, await sizeOf(part), either)
    const handle = await open(part, start === 0 ? 'w' : 'a')
    try {
      let bytes = start
      for await (const chunk of body) {
        timer.refresh()
        bytes += chunk.length
        if (bytes > file.bytes) throw new PullError(`${file.name} has more than the ${file.bytes} bytes announced`)
        await handle.write(chunk)
        progress(bytes)
      }
    } finally {
      await handle.close()
    }
  } finally {
    clearTimeout(timer)
  }
}

/** A file that is whole but wrong is removed, so that the next pull begins it anew. */
async function checkHash(part: string, { name, bytes, hash }: HubFile): Promise<void> {
  const digest: Hash = hash.length === 40 ? createHash('sha1').update(`blob ${bytes}\0`) : createHash('sha256')
  for await (const chunk of createReadStream(part)) digest.update(chunk as Buffer)
  const found = digest.digest('hex')
  if (found === hash) return
  await rm(part)
  throw new PullError(`${name}: the hash is ${found}, the hub says ${hash}; the file was removed`)
}

/** In the hub client's own form (commit, hash, time), so that its tools and `verify` know the file. */
async function writeMetadata(staging: string, { commit }: HubModel, { name, hash }: HubFile): Promise<void> {
  const folder = join(staging, '.cache', 'huggingface', 'download')
  await mkdir(folder, { recursive: true })
  await writeFile(join(folder, `${name}.metadata`), `${commit}\n${hash}\n${Date.now() / 1000}\n`)
}
