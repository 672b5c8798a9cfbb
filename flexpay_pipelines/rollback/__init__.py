"""rollback"""
