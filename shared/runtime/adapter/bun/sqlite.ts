import { Database } from 'bun:sqlite'
import type { Vendor } from '#shared/broker/sqlite/database.ts'

export const openVendor = (path: string): Vendor => new Database(path, { create: true })
