import {
  mkdirSync,
  openSync,
  closeSync,
  fsyncSync,
  readdirSync,
  renameSync,
  statSync,
  unlinkSync,
  utimesSync,
} from 'node:fs'
import { join } from 'node:path'
import { LRUCache } from 'lru-cache'
import type { Logger } from 'pino'
import type { LoadRequest, NativeModel, PackedSource } from '../native.js'
import { type PackedName, packedName } from './packed-name.js'

/** Trailer and rounding to pages, bytes, from above. */
const TRAILER_BYTES = 64 * 1024

/** What became of repacked files since the engine's start. */
export interface PackedEvents {
  /** Loads that took their matrices from one, and loads for which there was none. */
  hit: number
  miss: number
  written: number
  /** Removed because its content was damaged, because the model's files changed, or to make room. */
  damaged: number
  stale: number
  evicted: number
  /** Not written: the disk was full, larger than the budget, or another fault. */
  disk_full: number
  too_large: number
  failed: number
}

interface Stored {
  bytes: number
}

/**
 * The folder of repacked files: each holds the matrices of one variant in one device's layout, so that a load need not
 * read and convert the model's own files. An lru-cache holds them by last use with their sizes, within a budget of bytes;
 * what it drops is removed from the disk. No fault of a file or of the disk fails a load.
 */
export class PackedStore {
  readonly events: PackedEvents = {
    hit: 0,
    miss: 0,
    written: 0,
    damaged: 0,
    stale: 0,
    evicted: 0,
    disk_full: 0,
    too_large: 0,
    failed: 0,
  }
  private readonly files: LRUCache<string, Stored>
  private readonly writing = new Set<string>()

  /** Makes the folder where it is missing, counts what is in it and removes what a process that is gone left unfinished. */
  constructor(
    private readonly folder: string,
    readonly budgetBytes: number,
    private readonly log: Logger,
  ) {
    this.files = new LRUCache({
      maxSize: budgetBytes,
      sizeCalculation: ({ bytes }) => bytes,
      dispose: (_, name, reason) => {
        if (reason !== 'evict') return
        this.events.evicted++
        this.unlink(name)
      },
    })
    mkdirSync(folder, { recursive: true, mode: 0o700 })
    const names = readdirSync(folder)
    for (const name of names) if (isAbandoned(name)) this.unlink(name)
    const found = names.flatMap((name) => (name.endsWith('.packed') ? (this.stat(name) ?? []) : []))
    for (const { name, bytes } of found.toSorted((a, b) => a.usedAt - b.usedAt)) this.files.set(name, { bytes })
  }

  /** Bytes of all files. */
  get bytes(): number {
    return this.files.calculatedSize
  }

  get count(): number {
    return this.files.size
  }

  /** What names a variant's repacked file; undefined when its model's files cannot be looked at. */
  name(request: LoadRequest, layout: string): PackedName | undefined {
    try {
      return packedName(request, layout, (path) => statSync(path, { bigint: true }))
    } catch {
      return undefined
    }
  }

  /** Where a load may take the matrices from. Files of the same variant that were made of other content are removed. */
  find({ variant, file, key }: PackedName): PackedSource | undefined {
    const others = Array.from(this.files.keys()).filter((other) => other !== file && other.startsWith(variant))
    for (const other of others) {
      this.events.stale++
      this.log.info({ file: other }, 'repacked file removed: the files that it was made of have changed')
      this.remove(other)
    }
    return this.files.has(file) ? { path: join(this.folder, file), key } : undefined
  }

  /** Tells how a load went: what it used is the newest, what was of no use is removed, and what is missing is written. */
  loaded(variant: string, name: PackedName, model: NativeModel): void {
    const { file } = name
    if (model.packedFault !== '') {
      this.events.damaged++
      this.log.warn({ variant, file, reason: model.packedFault }, 'repacked file removed: it could not be used')
      this.remove(file)
    }
    if (model.origin === 'packed_file') this.events.hit++
    else this.events.miss++
    if (this.files.get(file)) this.touch(file)
    else void this.write(variant, name, model)
  }

  private async write(variant: string, { file, key }: PackedName, model: NativeModel): Promise<void> {
    if (this.writing.has(file)) return
    const bytes = model.packedBytes + TRAILER_BYTES
    if (bytes > this.budgetBytes) {
      this.events.too_large++
      this.log.info({ variant, bytes, budgetBytes: this.budgetBytes }, 'no repacked file: it is larger than the budget')
      return
    }
    while (this.bytes + bytes > this.budgetBytes) this.files.pop()
    const unfinished = join(this.folder, `${file}.${process.pid}.tmp`)
    this.writing.add(file)
    try {
      await model.savePacked({ path: unfinished, key })
      renameSync(unfinished, join(this.folder, file))
      syncFolder(this.folder)
      this.files.set(file, { bytes: this.stat(file)?.bytes ?? bytes })
      this.events.written++
      this.log.info({ variant, file, bytes: model.packedBytes }, 'repacked file written')
    } catch (error) {
      this.notWritten(variant, file, error)
    }
    this.writing.delete(file)
  }

  private notWritten(variant: string, file: string, error: unknown): void {
    const code = error instanceof Error && 'code' in error ? error.code : undefined
    // It was unloaded first.
    if (code === 'invalid_argument') return
    this.unlink(`${file}.${process.pid}.tmp`)
    if (code === 'disk_full') this.events.disk_full++
    else this.events.failed++
    const reason = error instanceof Error ? error.message : String(error)
    this.log.warn({ variant, reason }, code === 'disk_full' ? 'no repacked file: the disk is full' : 'no repacked file')
  }

  private remove(name: string): void {
    this.files.delete(name)
    this.unlink(name)
  }

  private unlink(name: string): void {
    try {
      unlinkSync(join(this.folder, name))
    } catch {
      // It is gone, or the folder cannot be written to: then nothing is.
    }
  }

  /** The next process finds the order of use in the files' times. */
  private touch(name: string): void {
    try {
      const now = new Date()
      utimesSync(join(this.folder, name), now, now)
    } catch {
      // It counts for this process.
    }
  }

  /** Undefined for a file that is gone. */
  private stat(name: string): { name: string; bytes: number; usedAt: number } | undefined {
    const stat = statSync(join(this.folder, name), { throwIfNoEntry: false })
    return stat && { name, bytes: stat.size, usedAt: stat.mtimeMs }
  }
}

/** A file that is being written carries its process's id. */
function isAbandoned(name: string): boolean {
  const [, pid] = /\.packed\.(\d+)\.tmp$/.exec(name) ?? []
  if (pid === undefined) return false
  try {
    process.kill(Number(pid), 0)
    return Number(pid) === process.pid
  } catch (error) {
    return error instanceof Error && 'code' in error && error.code === 'ESRCH'
  }
}

/** Makes a rename last. */
function syncFolder(folder: string): void {
  const descriptor = openSync(folder, 'r')
  try {
    fsyncSync(descriptor)
  } finally {
    closeSync(descriptor)
  }
}
