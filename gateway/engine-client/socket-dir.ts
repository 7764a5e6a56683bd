import { mkdtempSync, readdirSync, rmSync, statSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'

const PREFIX = 'edgeshift-'
const NAME = /^edgeshift-(\d+)-[A-Za-z0-9]{6}$/
/** Longest socket path that every system takes (sun_path), with room for the file name. */
const MAX_DIR_LENGTH = 80

/** The folder for sockets: TMPDIR, or /tmp where a socket's path would grow too long for the system. */
function parentDir(): string {
  const parent = tmpdir()
  return parent.length > MAX_DIR_LENGTH - 32 ? '/tmp' : parent
}

/** True when a process with this id exists, whoever owns it. */
function isAlive(pid: number): boolean {
  try {
    process.kill(pid, 0)
    return true
  } catch (error) {
    return error instanceof Error && 'code' in error && error.code === 'EPERM'
  }
}

/** Makes a folder that only this user can enter, named after this process. Remove it with `removeSocketDir`. */
export function createSocketDir(): string {
  return mkdtempSync(join(parentDir(), `${PREFIX}${process.pid}-`))
}

/** Removes the folder and what is in it; a folder that is gone is no error. */
export function removeSocketDir(dir: string): void {
  rmSync(dir, { recursive: true, force: true })
}

/** Removes this user's socket folders whose process is gone (killed without a chance to clean up); returns them. */
export function removeStaleSocketDirs(parent = parentDir()): string[] {
  const uid = process.getuid?.()
  return readdirSync(parent)
    .filter((name) => {
      const pid = Number(NAME.exec(name)?.[1])
      return Number.isInteger(pid) && !isAlive(pid)
    })
    .map((name) => join(parent, name))
    .filter((dir) => {
      const info = statSync(dir, { throwIfNoEntry: false })
      if (info === undefined || !info.isDirectory() || (uid !== undefined && info.uid !== uid)) return false
      removeSocketDir(dir)
      return true
    })
}
