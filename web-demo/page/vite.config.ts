import { defineConfig } from "vite";

// Static files that work below any path; the model lies beside them (models/, listed in models/models.json).
export default defineConfig({
  base: "./",
  worker: { format: "es" },
  build: { target: "es2023", assetsInlineLimit: 0, chunkSizeWarningLimit: 1000 },
});
