/** The model hub: what a repository holds, and one file's bytes from an offset on. */
import { HUB_URL, HubApiError, listFiles, modelInfo } from '@huggingface/hub'

/** A hub and how to talk to it. */
export interface Hub {
  /** Base URL without a trailing slash. */
  url: string
  token: string | undefined
}

/** A file of a repository at one commit. */
export interface HubFile {
  name: string
  bytes: number
  /** SHA-256 of its content (64 digits), or the git object's SHA-1 for small files (40). */
  hash: string
}

/** A repository at one commit. */
export interface HubModel {
  name: string
  commit: string
  files: HubFile[]
}

/** A failure that a person can act on. */
export class PullError extends Error {
  constructor(message: string, options?: ErrorOptions) {
    super(message, options)
    this.name = 'PullError'
  }
}

const NAME = /^[A-Za-z0-9][A-Za-z0-9._-]{0,95}(?:\/[A-Za-z0-9][A-Za-z0-9._-]{0,95})?$/
const FILE_NAME = /^[A-Za-z0-9_][A-Za-z0-9._-]{0,254}$/
const HASH = /^(?:[0-9a-f]{64}|[0-9a-f]{40})$/
const MAX_FILES = 10_000
const LIST_TIMEOUT_MS = 30_000
const CONNECT_TIMEOUT_MS = 30_000

/** The hub at `endpoint` (an option), of the environment (HF_ENDPOINT, HF_TOKEN), or the public one. Throws PullError. */
export function hubAt(endpoint: string | undefined, environment: NodeJS.ProcessEnv): Hub {
  const url = endpoint ?? environment.HF_ENDPOINT ?? HUB_URL
  if (!/^https?:$/.test(URL.canParse(url) ? new URL(url).protocol : ''))
    throw new PullError(`the endpoint ${JSON.stringify(url)} is not an http(s) URL`)
  return { url: url.replace(/\/+$/, ''), token: environment.HF_TOKEN }
}

/** "owner/name" or "name", nothing that could leave the models folder. Throws PullError. */
export function checkName(name: string): void {
  if (NAME.test(name) && !name.includes('..')) return
  throw new PullError(`${JSON.stringify(name.slice(0, 200))} is not a model's name (owner/name)`)
}

/** What the repository holds in its root, at the commit that `revision` is now. Rejects with PullError. */
export async function findModel(hub: Hub, name: string, revision: string): Promise<HubModel> {
  const access = { hubUrl: hub.url, fetch: timed, ...(hub.token === undefined ? {} : { accessToken: hub.token }) }
  try {
    const { sha } = await modelInfo({ name, revision, additionalFields: ['sha'], ...access })
    if (!/^[0-9a-f]{40}$/.test(sha)) throw new PullError(`${hub.url} gave no commit for ${name}`)
    const files: HubFile[] = []
    for await (const entry of listFiles({ repo: { type: 'model', name }, revision: sha, ...access })) {
      const { type, path, lfs, oid, size } = entry
      const hash = lfs?.oid ?? oid ?? ''
      // Only names that can be a file of the model's folder, whatever the server says.
      if (type !== 'file' || !FILE_NAME.test(path)) continue
      if (!HASH.test(hash) || !Number.isSafeInteger(size) || size < 0)
        throw new PullError(`${hub.url} gave no hash or size for ${path}`)
      files.push({ name: path, bytes: lfs?.size ?? size, hash })
      if (files.length > MAX_FILES) throw new PullError(`${name} has more than ${MAX_FILES} files`)
    }
    return { name, commit: sha, files }
  } catch (error) {
    throw explain(hub, name, error)
  }
}

const timed: typeof fetch = (input, init) => fetch(input, { ...init, signal: AbortSignal.timeout(LIST_TIMEOUT_MS) })

/** The bytes of a file from `offset` on, and where they begin (0 when the server does not continue). */
export async function openFile(
  hub: Hub,
  model: HubModel,
  file: HubFile,
  offset: number,
  signal: AbortSignal,
): Promise<{ start: number; body: AsyncIterable<Uint8Array> }> {
  const url = `${hub.url}/${model.name}/resolve/${model.commit}/${file.name}`
  const headers = {
    ...(hub.token === undefined ? {} : { authorization: `Bearer ${hub.token}` }),
    ...(offset > 0 ? { range: `bytes=${offset}-` } : {}),
    // A compressed answer has no byte ranges of the file.
    'accept-encoding': 'identity',
  }
  const response = await connect(url, headers, signal)
  if (!response.ok || response.body === null) {
    await response.body?.cancel()
    throw explain(hub, model.name, new HubApiError(url, response.status))
  }
  const begin = /^bytes (\d+)-/.exec(response.headers.get('content-range') ?? '')?.[1]
  const start = response.status === 206 ? Number(begin) : 0
  if (start !== 0 && start !== offset) throw new Error(`the server continued at byte ${begin} instead of ${offset}`)
  return { start, body: response.body }
}

/** Gives up when no answer begins in time; the body may take as long as it needs. */
async function connect(url: string, headers: Record<string, string>, signal: AbortSignal): Promise<Response> {
  const abort = new AbortController()
  const timer = setTimeout(() => abort.abort(new Error('no answer')), CONNECT_TIMEOUT_MS)
  try {
    return await fetch(url, { headers, signal: AbortSignal.any([signal, abort.signal]) })
  } finally {
    clearTimeout(timer)
  }
}

function explain(hub: Hub, name: string, error: unknown): Error {
  if (error instanceof PullError) return error
  if (error instanceof HubApiError) {
    const { statusCode } = error
    if (statusCode === 401 || statusCode === 403)
      return new PullError(`${hub.url} does not show ${name} without a token that may read it (set HF_TOKEN)`)
    if (statusCode === 404) return new PullError(`${hub.url} has no model ${name}, or not this revision or file`)
    return new Error(`${hub.url} answered ${statusCode}`)
  }
  const cause = error instanceof Error && error.cause instanceof Error ? error.cause : error
  const reason = cause instanceof Error ? cause.message : String(cause)
  const message = `${hub.url} cannot be reached (${reason}). Offline, copy the model's folder to models/${name} by hand`
  return new PullError(message, { cause: error })
}
